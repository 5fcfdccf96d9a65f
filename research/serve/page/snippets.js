// Requests as code that can be pasted. Keys are never in it: it reads them from the environment.

const quoted = (text) => `'${text.replaceAll("'", `'\\''`)}'`;

const absolute = (path) => new URL(path, document.baseURI).href;

const url = (model) => absolute(`models/${encodeURIComponent(model)}/predict`);

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
  const data = read.file
    ? `-F ${quoted(`${read.column}=@"${read.file.replace(/["\\]/g, "\\$&")}"`)}`
    : `-d ${quoted(JSON.stringify({inputs: [read.value]}))}`;
  return curlLines(url(model), data, withKey);
}

export function python(model, read, withKey) {
  const input = read.file
    ? `base64.b64encode(open(${literal(read.file)}, "rb").read()).decode()`
    : literal(read.value);
  const imports = read.file ? ["base64"] : [];
  return pythonLines(url(model), `{"inputs": [${input}]}`, '["predictions"]', imports, withKey);
}

// The same for a text: the path of its request, and the body.
export const curlOf = (path, body, withKey) => curlLines(absolute(path), `-d ${quoted(JSON.stringify(body))}`, withKey);

export function pythonOf(path, body, withKey) {
  const found = "messages" in body ? '["choices"][0]["message"]["content"]' : '["choices"][0]["text"]';
  return pythonLines(absolute(path), literal(JSON.parse(JSON.stringify(body))), found, [], withKey);
}

function curlLines(address, data, withKey) {
  const key = withKey ? ['-H "Authorization: Bearer $API_KEY"'] : [];
  return [`curl ${quoted(address)}`, ...key, data].join(" \\\n  ");
}

// `body` is a Python expression, `found` the subscripts of the answer that are printed.
function pythonLines(address, body, found, imports, withKey) {
  const names = ["json", "urllib.request", ...imports, ...(withKey ? ["os"] : [])];
  return [
    ...names.sort().map((name) => `import ${name}`),
    "",
    `url = ${literal(address)}`,
    `body = json.dumps(${body}).encode()`,
    "request = urllib.request.Request(url, body)",
    ...(withKey ? [`request.add_header("Authorization", "Bearer " + os.environ["API_KEY"])`] : []),
    "with urllib.request.urlopen(request) as answer:",
    `    print(json.load(answer)${found})`,
  ].join("\n");
}
