// What a program that uses Safelight writes, on the generated types alone.

import type { components, paths } from "./api.js";

type Schemas = components["schemas"];
type Submission = paths["/api/v1/generation-jobs"]["post"];
type Submitted = Submission["responses"][202]["content"]["application/json"];
type Refused = Submission["responses"][422]["content"]["application/problem+json"];
type Upload = paths["/api/v1/artifacts"]["post"];
type Download = paths["/api/v1/artifacts/{id}/content"]["get"]["responses"][200]["content"];

async function send(path: keyof paths, body: unknown, type = "application/json"): Promise<Response> {
  const content = body instanceof Blob ? body : JSON.stringify(body);
  return fetch(path, { method: "POST", headers: { "Content-Type": type }, body: content });
}

export async function submit(): Promise<Submitted> {
  const wanted: Submission["requestBody"]["content"]["application/json"] = { prompt: "x" };
  const answer = await send("/api/v1/generation-jobs", wanted);
  if (answer.status === 422) throw new Error(told((await answer.json()) as Refused));
  return (await answer.json()) as Submitted;
}

export function told(problem: Schemas["Problem"]): string {
  const fields: string[] = problem.errors.map((error) => `${error.pointer}: ${error.detail}`);
  return [problem.code, problem.detail, ...fields].join("\n");
}

export async function submitBatch(): Promise<string[]> {
  const wanted: Schemas["BatchRequest"] = {
    name: "chapter 1",
    jobs: [{ prompt: "x" }, { prompt: "y", scene_number: 2, metadata: { mood: "calm" } }],
  };
  const batch = (await (await send("/api/v1/batches", wanted)).json()) as Schemas["BatchView"];
  return batch.job_ids;
}

export function pictures(job: Schemas["JobView"]): string[] {
  const widths: (number | null)[] = job.artifacts.map((artifact) => artifact.width);
  return job.status === "completed" ? job.artifacts.map((artifact) => `${artifact.url} ${artifact.kind}`) : [String(widths)];
}

export async function upload(picture: Blob): Promise<string> {
  const body: Upload["requestBody"]["content"]["image/png"] = picture;
  const answer = await send("/api/v1/artifacts", body, "image/png");
  const stored = (await answer.json()) as Upload["responses"][201]["content"]["application/json"];
  return stored.id;
}

export async function download(id: string): Promise<Download[keyof Download]> {
  return (await fetch(`/api/v1/artifacts/${id}/content`)).blob();
}
