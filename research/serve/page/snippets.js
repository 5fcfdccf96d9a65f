// Requests as code that can be pasted. Keys are never in it: it reads them from the environment.

const quoted = (text) => `'${text.replaceAll("'", `'\\''`)}'`;

const url = (model) => new URL(`models/${encodeURIComponent(model)}/predict`, document.baseURI).href;

// A value of JSON as a Python literal.
function literal(value) {
  if (value === null) return "None";
  if (typeof value === "boolean") return value ? "True" : "False";
  if (Array.isArray(value)) return `[${value.map(literal).join(", ")}]`;
  if (typeof value === "object") {
    return `{${Object.entries(value).map(([name, each]) => `${JSON.stringify(name)}: ${literal(each)}`).join(", ")}}`;
  }
  return JSON.stringify(value);
}

// `read` is what an input's `read` found: its value, and for a file its name and column.
export function curl(model, read, withKey) {
  const lines = [`curl ${quoted(url(model))}`];
  if (withKey) lines.push('-H "Authorization: Bearer $API_KEY"');
  if (read.file) lines.push(`-F ${quoted(`${read.column}=@"${read.file.replace(/["\\]/g, "\\$&")}"`)}`);
  else lines.push(`-d ${quoted(JSON.stringify({inputs: [read.value]}))}`);
  return lines.join(" \\\n  ");
}

export function python(model, read, withKey) {
  const imports = ["json", "urllib.request"];
  if (read.file) imports.unshift("base64");
  if (withKey) imports.push("os");
  const input = read.file
    ? `base64.b64encode(open(${literal(read.file)}, "rb").read()).decode()`
    : literal(read.value);
  return [
    ...imports.sort().map((name) => `import ${name}`),
    "",
    `url = ${literal(url(model))}`,
    `body = json.dumps({"inputs": [${input}]}).encode()`,
    "request = urllib.request.Request(url, body)",
    ...(withKey ? [`request.add_header("Authorization", "Bearer " + os.environ["API_KEY"])`] : []),
    "with urllib.request.urlopen(request) as answer:",
    '    print(json.load(answer)["predictions"])',
  ].join("\n");
}
