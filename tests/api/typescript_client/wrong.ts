// Nothing here may type-check: every line after a comment is one fault that the types find.

import type { components, paths } from "./api.js";

type Schemas = components["schemas"];

// a prompt is missing
export const empty: Schemas["GenerationRequest"] = {};
// a misspelt field
export const misspelt: Schemas["GenerationRequest"] = { prompt: "x", widht: 512 };
// a number where a text belongs
export const number: Schemas["GenerationRequest"] = { prompt: 7 };
// a batch without jobs
export const batch: Schemas["BatchRequest"] = { name: "chapter 1" };
// text where bytes belong
export const bytes: paths["/api/v1/artifacts"]["post"]["requestBody"]["content"]["image/png"] = "picture";
// a status that does not exist
export const done = (job: Schemas["JobView"]): boolean => job.status === "done";
// a path that does not exist
export type Lost = paths["/api/v1/generation-job"];
