// A client that knows the service by its OpenAPI document alone: `paths` is generated from it.
import { readFile } from "node:fs/promises";
import type { components, paths } from "./api.js";

type Answer<Path extends keyof paths> = paths[Path] extends {
  post: { responses: { 200: { content: { "application/json": infer Body } } } };
}
  ? Body
  : never;
type Form<Path extends keyof paths> = paths[Path] extends {
  post: { requestBody: { content: { "multipart/form-data": infer Body } } };
}
  ? Omit<Body, "image" | "reference">
  : never;
type Problem = components["schemas"]["Problem"];

const [, , service, photo, other] = process.argv as [string, string, string, string, string];

async function post<Path extends "/v1/detect" | "/v1/enroll" | "/v1/verify" | "/v1/identify">(
  path: Path,
  image: string,
  fields: Form<Path>,
): Promise<Answer<Path>> {
  const form = new FormData();
  form.append("image", new Blob([new Uint8Array(await readFile(image))]), "photo.jpg");
  for (const [name, value] of Object.entries(fields)) form.append(name, String(value));
  const response = await fetch(service + path, { method: "POST", body: form });
  if (!response.ok) {
    const problem = (await response.json()) as Problem;
    throw new Error(`${problem.code}: ${problem.detail}`);
  }
  return (await response.json()) as Answer<Path>;
}

const found = await post("/v1/detect", photo, {});
const enrolled = await post("/v1/enroll", photo, { person_id: "typescript" });
const verified = await post("/v1/verify", other, { person_id: "typescript" });
const identified = await post("/v1/identify", other, { top_k: 1, target_fpir: 0.01 });
let refused: Problem["code"] | undefined;
try {
  await post("/v1/verify", other, { person_id: "nobody" });
} catch (error) {
  refused = (error as Error).message.split(":")[0] as Problem["code"];
}
console.log(
  JSON.stringify({
    faces: found.faces.length,
    enrolled: enrolled.enrolled.length,
    match: verified.is_match,
    person: identified.faces[0]?.person_id,
    refused,
  }),
);
