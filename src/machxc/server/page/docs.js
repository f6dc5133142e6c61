// The page of the API, made from its own OpenAPI description.

const byId = (id) => document.getElementById(id);
const theme = localStorage.getItem("machxc-theme") ?? "auto";
const dark = theme === "dark" || (theme === "auto" && matchMedia("(prefers-color-scheme: dark)").matches);
document.documentElement.toggleAttribute("data-dark", dark);

function element(tag, text, className) {
  const made = document.createElement(tag);
  if (text !== undefined) made.append(text);
  if (className) made.className = className;
  return made;
}

function table(columns, rows) {
  const made = element("table");
  const head = element("tr");
  head.append(...columns.map((name) => element("th", name)));
  made.append(head, ...rows.map((cells) => {
    const row = element("tr");
    row.append(...cells.map((cell) => {
      const data = element("td");
      data.append(cell);
      return data;
    }));
    return row;
  }));
  const scroll = element("div", made, "scroll");
  return scroll;
}

function type(schema) {
  if (!schema) return "";
  if (schema.$ref) {
    const name = schema.$ref.split("/").pop();
    const link = element("a", name);
    link.href = `#${name}`;
    return link;
  }
  const either = schema.anyOf ?? schema.oneOf;
  if (either) return joined(either.filter((each) => each.type !== "null").map(type), " or ");
  if (schema.enum) return schema.enum.join(" | ");
  if (schema.type === "array") return joined(["list of ", type(schema.items)], "");
  return [schema.type, limits(schema)].filter(Boolean).join(" ");
}

function limits(schema) {
  const names = { minimum: "≥", maximum: "≤", exclusiveMaximum: "<", minLength: "length ≥", maxLength: "length ≤" };
  return Object.entries(names).filter(([name]) => name in schema).map(([name, sign]) => `${sign} ${schema[name]}`).join(", ");
}

function joined(parts, between) {
  const made = element("span");
  parts.forEach((part, i) => made.append(...(i && between ? [between, part] : [part])));
  return made;
}

function route(path, method, operation) {
  const made = element("article");
  const title = element("h2");
  title.append(element("span", method.toUpperCase(), "method"), element("code", path));
  made.append(title, element("p", operation.summary));
  const body = operation.requestBody?.content["application/json"].schema;
  if (body) made.append(element("p", joined(["Takes ", type(body)], "")));
  const rows = Object.entries(operation.responses).map(([status, response]) => {
    const content = Object.entries(response.content ?? {})[0];
    return [status, response.description, content ? (content[0].includes("json") ? type(content[1].schema) : content[0]) : ""];
  });
  made.append(table(["status", "when", "body"], rows));
  return made;
}

function object(name, schema) {
  const made = element("article");
  made.id = name;
  made.append(element("h2", name), element("p", schema.description ?? ""));
  const required = new Set(schema.required ?? []);
  const rows = Object.entries(schema.properties ?? {}).map(([field, property]) => {
    const standard = property.default === undefined || property.default === null ? "" : `default: ${property.default}`;
    const notes = [property.description, standard].filter(Boolean).join("; ");
    return [element("code", field + (required.has(field) ? "" : "?")), type(property), notes];
  });
  made.append(table(["field", "type", ""], rows));
  return made;
}

const description = await (await fetch("/openapi.json")).json();
byId("about").textContent = `${description.info.description} Version ${description.info.version}. A field with ? may be left out.`;
const key = description.security ? " \\\n  -H 'Authorization: Bearer KEY'" : "";
byId("example").textContent = `curl ${location.origin}/v1/search \\\n  -H 'Content-Type: application/json'${key} \\\n  -d '{"queries": ["a text", "another"], "top_k": 3}'`;
for (const [path, methods] of Object.entries(description.paths)) {
  for (const [method, operation] of Object.entries(methods)) byId("routes").append(route(path, method, operation));
}
for (const [name, schema] of Object.entries(description.components.schemas)) byId("objects").append(object(name, schema));
document.querySelector(location.hash || "body")?.scrollIntoView();
