"""Encryption of embeddings at rest: a key for each person, wrapped by a key outside the database.

Deleting a person's wrapped key makes their embeddings unreadable in every copy that still exists:
in backups, in replicas, in pages that a disk has not overwritten yet (cryptographic erase, NIST SP
800-88 Rev. 1, section 2.5). Python cannot wipe memory: a program that can read the memory of the
service can read its keys.
"""
