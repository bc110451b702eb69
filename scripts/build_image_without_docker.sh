#!/usr/bin/env bash
# Builds the container image where no Docker engine runs: buildah in a chroot, as root.
#
# The base image comes from a registry where one can be reached (by default the one that the Dockerfile pins), and from a
# root file system made here where none can. On Debian:
#
#   apt-get install --yes buildah debootstrap
#   debootstrap --variant=minbase --include=python3,python3-venv,ca-certificates bookworm /tmp/rootfs
#   scripts/build_image_without_docker.sh --rootfs /tmp/rootfs
#
# Usage: scripts/build_image_without_docker.sh [--base IMAGE | --rootfs DIR] [--tag NAME] [BUILDAH ARGUMENTS...]
#
# What only this machine needs to reach its package registries (a CA bundle, a pip.conf) is mounted for the
# build and never stored in the image: pass it on as --volume SOURCE:TARGET:ro.
# The images are in $STORAGE (default /var/tmp/likeness-images); look with buildah --root "$STORAGE" images.
set -euo pipefail
cd "$(dirname "$0")/.."

base=
rootfs=
tag=likeness:cpu
while [ $# -gt 0 ]; do
    case $1 in
        --base) base=$2; shift 2 ;;
        --rootfs) rootfs=$2; shift 2 ;;
        --tag) tag=$2; shift 2 ;;
        *) break ;;
    esac
done

storage=${STORAGE:-/var/tmp/likeness-images}
# vfs needs no kernel support; chroot isolation needs no namespaces of its own.
images=(buildah --root "$storage" --runroot "$storage.run" --storage-driver vfs)

if [ -n "$rootfs" ]; then
    base=localhost/likeness-base:local
    container=$("${images[@]}" from scratch)
    "${images[@]}" add --quiet "$container" "$rootfs" / >/dev/null
    "${images[@]}" commit --quiet --rm "$container" "$base" >/dev/null
fi

# The docker format, because the OCI one has no health check.
"${images[@]}" bud --isolation chroot --format docker --layers=false --target cpu \
    ${base:+--build-arg "BASE_IMAGE=$base"} --tag "$tag" "$@" .
"${images[@]}" images
