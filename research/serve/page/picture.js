// An image as input: drawn, chosen or dropped, and shown as the model reads it.

import {element} from "./dom.js";

const LARGEST_DRAWING = 64; // pixels: nobody draws a photo
const CANVAS = 280; // of a drawing, on the screen
const MNIST = 28; // pixels of a side
const INK = 20 / MNIST; // of a drawing's side: what MNIST's digits take of theirs

// `image`: what the model reads: {height, width, channels, white, resize}.
export function pictureInput(image) {
  const draws = image.channels === 1 && Math.max(image.height, image.width) <= LARGEST_DRAWING;
  const drawing = draws ? drawingInput(image) : null;
  const file = fileInput(image);
  let chosen = drawing ?? file;
  const place = element("div", {}, chosen.element);
  const show = (input) => {
    chosen = input;
    place.replaceChildren(input.element);
  };
  const mode = (name, input) =>
    element("label", {}, element("input", {
      type: "radio", name: "mode", value: name, checked: input === chosen, onchange: () => show(input),
    }), name);
  const modes = draws ? element("fieldset", {class: "modes"}, element("legend", {class: "visually-hidden"}, "Kind of image"),
    mode("Draw", drawing), mode("File", file)) : null;
  return {
    element: element("div", {}, ...(modes ? [modes] : []), place),
    async read(model) {
      return {column: model.inputs[0], ...(await chosen.read(model))};
    },
    state: () => ({input: chosen, inner: chosen.state()}),
    restore({input, inner}) {
      for (const radio of modes?.querySelectorAll("input") ?? []) radio.checked = (radio.value === "Draw") === (input === drawing);
      show(input);
      input.restore(inner);
    },
  };
}

// White on black, by pointer or by keys: the arrows move a pen, the space bar sets it down or lifts it. It is read as
// the digits of its size were made: MNIST's were scaled to a box, whose centre of mass is in the middle; smaller ones, as
// scikit-learn's, fill all.
function drawingInput(image) {
  const scale = Math.max(1, Math.floor(CANVAS / Math.max(image.height, image.width)));
  const canvas = element("canvas", {
    id: "ink", width: scale * image.width, height: scale * image.height, tabindex: 0, role: "application",
    "aria-label": "Drawing", "aria-describedby": "ink-hint",
  });
  const width = scale * Math.max(1.8, image.width / 12); // of a line
  const said = element("p", {class: "visually-hidden", role: "status"});
  const pen = {x: canvas.width / 2, y: canvas.height / 2, down: false};
  let lines = []; // of points

  function line(x, y) {
    const last = lines.at(-1)?.at(-1);
    if (last && last[0] === pen.x && last[1] === pen.y) lines.at(-1).push([x, y]);
    else lines.push([[pen.x, pen.y], [x, y]]);
    Object.assign(pen, {x, y});
    ink(canvas, lines, width);
  }
  function draw(found) {
    lines = found;
    ink(canvas, lines, width);
  }
  const at = (event) => {
    const box = canvas.getBoundingClientRect();
    return [((event.clientX - box.left) * canvas.width) / box.width, ((event.clientY - box.top) * canvas.height) / box.height];
  };
  canvas.addEventListener("pointerdown", (event) => {
    canvas.setPointerCapture(event.pointerId);
    [pen.x, pen.y] = at(event);
    line(pen.x, pen.y);
  });
  canvas.addEventListener("pointermove", (event) => {
    if (canvas.hasPointerCapture(event.pointerId)) line(...at(event));
  });
  const arrows = {ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1]};
  canvas.addEventListener("keydown", (event) => {
    if (event.key === " ") {
      pen.down = !pen.down;
      if (pen.down) line(pen.x, pen.y);
      said.textContent = pen.down ? "Pen down" : "Pen up";
    } else if (event.key in arrows) {
      const [right, down] = arrows[event.key];
      const x = Math.min(canvas.width, Math.max(0, pen.x + right * scale));
      const y = Math.min(canvas.height, Math.max(0, pen.y + down * scale));
      if (pen.down) line(x, y);
      else Object.assign(pen, {x, y});
      said.textContent = `column ${Math.round(x / scale)}, row ${Math.round(y / scale)}`;
    } else return;
    event.preventDefault();
  });
  draw([]);
  const hint = `It is centred, scaled, and sent as ${image.width} × ${image.height} pixels. With keys: arrows move the pen, the space bar ` +
    "sets it down or lifts it.";
  return {
    element: element(
      "div", {class: "picture"}, canvas,
      element("button", {type: "button", onclick: () => draw([])}, "Clear drawing"),
      element("p", {class: "muted", id: "ink-hint"}, hint), said,
    ),
    async read(model) {
      if (!lines.length) throw new Error("Draw something first.");
      return {...pixelsOf(centred(lines, canvas, width, image), model.image), title: "a drawing"};
    },
    state: () => lines.map((points) => [...points]),
    restore: (state) => draw(state.map((points) => [...points])),
  };
}

// Draws lines of points on a canvas, white on black.
function ink(canvas, lines, width) {
  const context = canvas.getContext("2d", {willReadFrequently: true});
  context.fillStyle = "#000";
  context.fillRect(0, 0, canvas.width, canvas.height);
  Object.assign(context, {lineCap: "round", lineJoin: "round", strokeStyle: "#fff", lineWidth: width});
  for (const points of lines) {
    context.beginPath();
    for (const [x, y] of points) context.lineTo(x, y);
    context.stroke();
  }
}

// A canvas of the same size with the lines, of the same width, as large and where such images have them.
function centred(lines, {width: across, height: down}, width, image) {
  const small = Math.min(image.height, image.width) < MNIST;
  const canvas = element("canvas", {width: across, height: down});
  const ends = [0, 1].map((axis) => {
    const values = lines.flat().map((point) => point[axis]);
    return [Math.min(...values), Math.max(...values)];
  });
  const size = Math.max(...ends.map(([low, high]) => high - low), 1);
  const scale = ((small ? 1 : INK) * Math.min(across, down) - width) / size;
  const moved = (to) => lines.map((points) => points.map((point) =>
    point.map((value, axis) => to[axis] + scale * (value - (ends[axis][0] + ends[axis][1]) / 2))));
  const middle = [across / 2, down / 2];
  ink(canvas, moved(middle), width);
  if (small) return canvas;
  const mass = centreOfMass(canvas);
  ink(canvas, moved(middle.map((value, axis) => 2 * value - mass[axis])), width);
  return canvas;
}

// [x, y] of the ink on a canvas.
function centreOfMass(canvas) {
  const {data, width} = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height);
  const sums = [0, 0];
  let total = 0;
  for (let i = 0; i < data.length; i += 4) {
    const pixel = i / 4;
    sums[0] += data[i] * ((pixel % width) + 0.5);
    sums[1] += data[i] * (Math.floor(pixel / width) + 0.5);
    total += data[i];
  }
  return sums.map((sum) => sum / total);
}

function fileInput(image) {
  const preview = element("div");
  const field = element("input", {type: "file", id: "file", accept: "image/*", onchange: () => take(field.files[0])});
  const box = element(
    "div", {class: "drop"},
    element("label", {for: "file"}, "Choose an image, or drop one here"), field,
  );
  let file = null;
  function take(chosen) {
    if (!chosen) return;
    file = chosen;
    preview.replaceChildren();
    decoded(chosen).then(
      (bitmap) => preview.replaceChildren(
        element("p", {class: "muted"}, `${chosen.name}, as the model reads it (${image.width} × ${image.height}):`),
        shown(view(bitmap, image), "The image as the model reads it"),
      ),
      (error) => preview.replaceChildren(element("p", {class: "muted"}, error.message)),
    );
  }
  for (const name of ["dragenter", "dragover"]) {
    box.addEventListener(name, (event) => {
      event.preventDefault();
      box.classList.add("over");
    });
  }
  box.addEventListener("dragleave", () => box.classList.remove("over"));
  box.addEventListener("drop", (event) => {
    event.preventDefault();
    box.classList.remove("over");
    take(event.dataTransfer.files[0]);
  });
  return {
    element: element("div", {class: "picture"}, box, preview),
    async read(model) {
      if (!file) throw new Error("Choose an image first.");
      const bitmap = await decoded(file);
      if (model.image.resize === null) return {...pixelsOf(view(bitmap, model.image), model.image), title: file.name};
      const data = await asBase64(file);
      return {value: data, file: file.name, title: file.name, preview: view(bitmap, model.image)};
    },
    state: () => file,
    restore: take,
  };
}

async function decoded(file) {
  try {
    return await createImageBitmap(file);
  } catch {
    throw new Error(`${file.name} is not an image that this browser can read.`);
  }
}

function asBase64(file) {
  return new Promise((resolve, reject) => {
    const reader = new FileReader();
    reader.onload = () => resolve(reader.result.slice(reader.result.indexOf(",") + 1));
    reader.onerror = () => reject(new Error(`${file.name} can't be read.`));
    reader.readAsDataURL(file);
  });
}

// The part of an image that the model reads, in its size: as the service's resizing and central crop make it.
function view(bitmap, image) {
  const {height, width, resize} = image;
  const shorter = Math.min(bitmap.width, bitmap.height);
  const fits = bitmap.width === width && bitmap.height === height;
  const scale = fits ? 1 : resize ? resize / shorter : Math.max(width / bitmap.width, height / bitmap.height);
  const canvas = element("canvas", {width, height});
  const context = canvas.getContext("2d", {willReadFrequently: true});
  context.imageSmoothingQuality = "high";
  const size = [bitmap.width * scale, bitmap.height * scale];
  context.drawImage(bitmap, (width - size[0]) / 2, (height - size[1]) / 2, ...size);
  return canvas;
}

// A canvas as pixels [H, W, C], each the mean of those that it covers, from 0 to `white`; `preview`: the same to look at.
function pixelsOf(canvas, image) {
  const {height, width, channels, white} = image;
  const preview = element("canvas", {width, height});
  const context = preview.getContext("2d", {willReadFrequently: true});
  const small = context.createImageData(width, height);
  const from = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height);
  const value = [];
  for (let y = 0; y < height; y++) {
    const row = [];
    for (let x = 0; x < width; x++) {
      const rgb = mean(from, x / width, (x + 1) / width, y / height, (y + 1) / height);
      const grey = 0.299 * rgb[0] + 0.587 * rgb[1] + 0.114 * rgb[2]; // ITU-R 601, as the service
      const levels = channels === 1 ? [grey] : rgb;
      row.push(levels.map((level) => (white === 255 ? Math.round(level) : Number(((level / 255) * white).toFixed(2)))));
      small.data.set([...(channels === 1 ? [grey, grey, grey] : rgb), 255], 4 * (y * width + x));
    }
    value.push(row);
  }
  context.putImageData(small, 0, 0);
  return {value, preview};
}

function mean(from, left, right, top, bottom) {
  const sums = [0, 0, 0];
  let count = 0;
  for (let y = Math.floor(top * from.height); y < Math.ceil(bottom * from.height); y++) {
    for (let x = Math.floor(left * from.width); x < Math.ceil(right * from.width); x++) {
      for (const c of [0, 1, 2]) sums[c] += from.data[4 * (y * from.width + x) + c];
      count++;
    }
  }
  return sums.map((sum) => sum / count);
}

// A canvas on the screen, small ones enlarged so that their pixels are seen.
export function shown(canvas, label) {
  const {width, height} = canvas;
  canvas.setAttribute("role", "img");
  canvas.setAttribute("aria-label", label);
  canvas.classList.toggle("pixels", Math.max(width, height) <= 2 * LARGEST_DRAWING);
  const scale = Math.max(1, Math.floor(224 / Math.max(width, height)));
  canvas.style.width = `${scale * width}px`;
  return canvas;
}
