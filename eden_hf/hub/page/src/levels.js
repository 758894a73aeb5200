// The second tab: a picture cut into the parts of a level, as `eden_hf.anatomy` cuts it.

const $ = (id) => document.getElementById(id);
const GAP = 6;

/** Rows and columns of a level. */
export const gridShape = (level) => [2 ** Math.floor(level / 2), 2 ** Math.floor((level + 1) / 2)];

/** Boxes [x0, y0, x1, y1] of the parts of a level, row by row. */
export function partBoxes(width, height, level) {
  const [rows, columns] = gridShape(level);
  const edge = (length, count, index) => Math.floor((index * length) / count);
  return Array.from({ length: rows * columns }, (_, part) => {
    const [row, column] = [Math.floor(part / columns), part % columns];
    return [
      edge(width, columns, column),
      edge(height, rows, row),
      edge(width, columns, column + 1),
      edge(height, rows, row + 1),
    ];
  });
}

/** Index of the part of the level above that holds a part. */
export function parentOf(level, part) {
  const [row, column] = position(level, part);
  const columns = gridShape(level - 1)[1];
  return level % 2 ? row * columns + (column >> 1) : (row >> 1) * columns + column;
}

/** Indices of the two parts of the level below that a part is cut into. */
export function childrenOf(level, part) {
  const [row, column] = position(level, part);
  const columns = gridShape(level + 1)[1];
  if (level % 2) return [2 * row * columns + column, (2 * row + 1) * columns + column];
  return [row * columns + 2 * column, row * columns + 2 * column + 1];
}

function position(level, part) {
  const columns = gridShape(level)[1];
  return [Math.floor(part / columns), part % columns];
}

/** Set the tab up: {offer(images), draw()}. */
export function showLevels() {
  let images = [];
  let part = 0;
  const canvas = $("parts");
  const level = () => Number($("level").value);
  const image = () => images[$("picture").selectedIndex];

  function draw() {
    if (!image() || canvas.closest("[hidden]")) return;
    const [rows, columns] = gridShape(level());
    const { picture, width, height, name } = image();
    const scale = 640 / Math.max(width, height);
    canvas.width = Math.max(1, Math.round(width * scale)) + (columns + 1) * GAP;
    canvas.height = Math.max(1, Math.round(height * scale)) + (rows + 1) * GAP;
    const context = canvas.getContext("2d");
    partBoxes(width, height, level()).forEach(([x0, y0, x1, y1], index) => {
      if (x1 > x0 && y1 > y0)
        context.drawImage(picture, x0, y0, x1 - x0, y1 - y0, ...placed([x0, y0, x1, y1], index, scale));
    });
    outline(context, scale);
    $("number").textContent = level();
    $("part").textContent = said();
    canvas.setAttribute("aria-label", `${name} in ${rows * columns} parts. ${said()}`);
  }

  /** Where a part is drawn, between its gaps: left, top, width, height. */
  function placed([x0, y0, x1, y1], index, scale) {
    const [row, column] = position(level(), index);
    return [x0 * scale + (column + 1) * GAP, y0 * scale + (row + 1) * GAP, (x1 - x0) * scale, (y1 - y0) * scale];
  }

  function outline(context, scale) {
    const { width, height } = image();
    const boxes = partBoxes(width, height, level());
    const drawn = (index) => placed(boxes[index], index, scale);
    context.strokeStyle = getComputedStyle(canvas).color;
    if (level() > 0) {
      const siblings = childrenOf(level() - 1, parentOf(level(), part));
      const [[left, top], [lastLeft, lastTop, wide, high]] = siblings.map(drawn);
      context.setLineDash([10, 6]);
      context.lineWidth = 3;
      context.strokeRect(left - 3, top - 3, lastLeft + wide - left + 6, lastTop + high - top + 6);
    }
    const [left, top, wide, high] = drawn(part);
    context.setLineDash([]);
    context.lineWidth = 5;
    context.strokeRect(left, top, wide, high);
    context.lineWidth = 2;
    context.beginPath();
    if (level() % 2) {
      context.moveTo(left, top + high / 2);
      context.lineTo(left + wide, top + high / 2);
    } else {
      context.moveTo(left + wide / 2, top);
      context.lineTo(left + wide / 2, top + high);
    }
    context.stroke();
  }

  function said() {
    const [rows, columns] = gridShape(level());
    const [first, second] = childrenOf(level(), part);
    const whole = `Level ${level()}: ${rows * columns} part${rows * columns > 1 ? "s" : ""}, ${rows} x ${columns}.`;
    const parent = level() ? ` lies in part ${parentOf(level(), part)} of level ${level() - 1} and` : "";
    return `${whole} Part ${part}${parent} is cut into parts ${first} and ${second} of level ${level() + 1}.`;
  }

  function choose(row, column) {
    const [rows, columns] = gridShape(level());
    part = Math.min(Math.max(row, 0), rows - 1) * columns + Math.min(Math.max(column, 0), columns - 1);
    draw();
  }

  $("level").addEventListener("input", () => {
    part = 0;
    draw();
  });
  $("picture").addEventListener("change", draw);
  canvas.addEventListener("click", ({ offsetX, offsetY }) => {
    const [rows, columns] = gridShape(level());
    choose(Math.floor((offsetY / canvas.clientHeight) * rows), Math.floor((offsetX / canvas.clientWidth) * columns));
  });
  canvas.addEventListener("keydown", (event) => {
    const step = { ArrowLeft: [0, -1], ArrowRight: [0, 1], ArrowUp: [-1, 0], ArrowDown: [1, 0] }[event.key];
    if (!step) return;
    event.preventDefault();
    const [row, column] = position(level(), part);
    choose(row + step[0], column + step[1]);
  });

  return {
    draw,
    offer(offered) {
      const chosen = image();
      images = [...offered];
      $("picture").replaceChildren(...images.map(({ name }) => new Option(name)));
      $("picture").selectedIndex = Math.max(0, images.indexOf(chosen));
      draw();
    },
  };
}
