// Writes api.ts: the types of every path and view in openapi.json. What is binary there is a Blob here.

import { readFile, writeFile } from "node:fs/promises";
import openapiTS, { astToString } from "openapi-typescript";
import ts from "typescript";

const BLOB = ts.factory.createTypeReferenceNode("Blob");
const document = JSON.parse(await readFile("openapi.json", "utf8"));
const types = await openapiTS(document, {
  transform: (schema) => (schema.format === "binary" ? BLOB : undefined),
});
await writeFile("api.ts", astToString(types));
