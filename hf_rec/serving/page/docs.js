// Shows openapi.json: every operation with its fields and a command to try it.
"use strict";

// An element with attributes and children; strings become text, never markup.
function element(name, attributes, ...children) {
  const made = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  made.append(...children);
  return made;
}

function typeName(schema) {
  if (schema.$ref) return schema.$ref.split("/").pop();
  if (schema.anyOf) return schema.anyOf.map(typeName).join(" | ");
  if (schema.type === "array") return `[${typeName(schema.items)}]`;
  return schema.type ?? "any";
}

function row(name, schema, required = false) {
  const limits = ["minimum", "maximum", "maxLength", "minItems", "default"]
    .filter((key) => schema[key] !== undefined)
    .map((key) => `${key} ${JSON.stringify(schema[key])}`);
  const notes = [required ? "required" : "", schema.description ?? "", ...limits].filter(Boolean).join("; ");
  return element("tr", {}, element("td", {}, element("code", {}, name)), element("td", {}, typeName(schema)), element("td", {}, notes));
}

function table(title, rows) {
  return rows.length ? [element("h3", {}, title), element("div", { class: "wide" }, element("table", {}, ...rows))] : [];
}

function fields(schema, required = []) {
  return Object.entries(schema.properties ?? {}).map(([name, part]) => row(name, part, required.includes(name)));
}

function show(api) {
  const resolve = (schema) => (schema?.$ref ? api.components.schemas[schema.$ref.split("/").pop()] : schema) ?? {};
  for (const [path, methods] of Object.entries(api.paths)) {
    for (const [method, operation] of Object.entries(methods)) {
      const body = resolve(operation.requestBody?.content["application/json"].schema);
      const answer = resolve(operation.responses["200"]?.content?.["application/json"]?.schema);
      const parameters = (operation.parameters ?? []).map((part) =>
        row(part.name, { ...part.schema, description: part.description }, part.required));
      const url = new URL(path.slice(1), location.href).href;
      const sample = body.properties?.history ? `{"history": []${body.properties.candidates ? ', "candidates": ["..."]' : ""}${body.properties.item_id ? ', "item_id": "..."' : ""}}` : "{}";
      const data = method === "post" ? ` -H 'Content-Type: application/json' -d '${sample}'` : "";
      document.getElementById("operations").append(element("section", {},
        element("h2", {}, element("code", {}, `${method.toUpperCase()} ${path}`)),
        element("p", {}, operation.description ?? ""),
        element("pre", {}, `curl ${url}${data}`),
        ...table("Request", [...parameters, ...fields(body, body.required)]), ...table("Answer", fields(answer))));
    }
  }
}

fetch("openapi.json").then((answer) => answer.json()).then(show);
