// Points found as `eden_hf.matching.AnatomyMatcher` finds them from one reference (its docstrings say why so).
// A place is [x, y] in shares of the picture's sides.
// A map is {vectors: Float32Array [D, side, side] of unit vectors, dim, side}.

/** Places of the nodes of a map of `side`, row by row. */
export function nodePlaces(side) {
  return Array.from({ length: side * side }, (_, node) => [
    ((node % side) + 0.5) / side,
    (Math.floor(node / side) + 0.5) / side,
  ]);
}

const clamp = (value, low, high) => Math.min(Math.max(value, low), high);
const squaredDistance = (a, b) => (a[0] - b[0]) ** 2 + (a[1] - b[1]) ** 2;

/** The unit vector at a place, between the nodes. */
export function embeddingAt({ vectors, dim, side }, [x, y]) {
  const [column, row] = [x, y].map((share) => clamp(share * side - 0.5, 0, side - 1));
  const [left, top] = [Math.floor(column), Math.floor(row)];
  const [right, bottom] = [Math.min(left + 1, side - 1), Math.min(top + 1, side - 1)];
  const [across, down] = [column - left, row - top];
  const corners = [
    [top * side + left, (1 - across) * (1 - down)],
    [top * side + right, across * (1 - down)],
    [bottom * side + left, (1 - across) * down],
    [bottom * side + right, across * down],
  ];
  const found = new Float32Array(dim);
  for (const [node, weight] of corners) {
    for (let d = 0; d < dim; d++) found[d] += weight * vectors[d * side * side + node];
  }
  const norm = Math.hypot(...found) || 1;
  return found.map((value) => value / norm);
}

/** Cosines [side * side] of a map's nodes with a unit vector. */
function cosines({ vectors, dim, side }, embedding) {
  const nodes = side * side;
  const found = new Float32Array(nodes);
  for (let d = 0; d < dim; d++) {
    const factor = embedding[d];
    const from = d * nodes;
    for (let node = 0; node < nodes; node++) found[node] += factor * vectors[from + node];
  }
  return found;
}

/** Weights of four neighbours in each of `target` values between `length` ones (bicubic, as torch has it). */
function bicubic(length, target) {
  const a = -0.75;
  const near = (t) => ((a + 2) * t - (a + 3)) * t * t + 1;
  const far = (t) => ((a * t - 5 * a) * t + 8 * a) * t - 4 * a;
  return Array.from({ length: target }, (_, index) => {
    const centre = ((index + 0.5) * length) / target - 0.5;
    const first = Math.floor(centre);
    const t = centre - first;
    return [far(t + 1), near(t), near(1 - t), far(2 - t)].map((weight, offset) => [
      clamp(first - 1 + offset, 0, length - 1),
      weight,
    ]);
  });
}

/** Values [side, side] at [target, target]. */
export function enlarged(values, side, target) {
  if (side === target) return values;
  const weights = bicubic(side, target);
  const rows = new Float32Array(target * side);
  const found = new Float32Array(target * target);
  weights.forEach((taps, row) => {
    for (let column = 0; column < side; column++) {
      for (const [from, weight] of taps) rows[row * side + column] += weight * values[from * side + column];
    }
  });
  weights.forEach((taps, column) => {
    for (let row = 0; row < target; row++) {
      for (const [from, weight] of taps) found[row * target + column] += weight * rows[row * side + from];
    }
  });
  return found;
}

/** How alike the nodes of the finest map are to the point at `place` of `reference`: mean cosines over scales. */
export function similarity(reference, place, maps) {
  const side = Math.max(...maps.map((map) => map.side));
  const total = new Float32Array(side * side);
  maps.forEach((map, scale) => {
    const values = enlarged(cosines(map, embeddingAt(reference[scale], place)), map.side, side);
    for (let node = 0; node < total.length; node++) total[node] += values[node] / maps.length;
  });
  return total;
}

/** The basis of smooth maps, as a function of places: one, x, y, and Gaussian bumps on a grid. */
function smoothBasis(grid) {
  const bumps = nodePlaces(grid).map((centre) => centre.map((share) => 0.5 + (share - 0.5) * 0.85));
  return ([x, y]) => [
    ...[1, 2 * x - 1, 2 * y - 1],
    ...bumps.map((bump) => Math.exp(-0.5 * squaredDistance([x, y], bump) * (grid / 0.85) ** 2)),
  ];
}

/** Solve a symmetric positive definite system for several right-hand sides (Cholesky). */
export function solved(matrix, sides) {
  const n = matrix.length;
  const lower = matrix.map((row) => Float64Array.from(row));
  for (let i = 0; i < n; i++) {
    for (let j = 0; j <= i; j++) {
      let sum = lower[i][j];
      for (let k = 0; k < j; k++) sum -= lower[i][k] * lower[j][k];
      lower[i][j] = i === j ? Math.sqrt(sum) : sum / lower[j][j];
    }
  }
  return sides.map((side) => {
    const x = Float64Array.from(side);
    for (let i = 0; i < n; i++) {
      for (let k = 0; k < i; k++) x[i] -= lower[i][k] * x[k];
      x[i] /= lower[i][i];
    }
    for (let i = n - 1; i >= 0; i--) {
      for (let k = i + 1; k < n; k++) x[i] -= lower[k][i] * x[k];
      x[i] /= lower[i][i];
    }
    return x;
  });
}

/** Vectors of a map node by node, [nodes, D]. */
function nodeVectors({ vectors, dim, side }) {
  const nodes = side * side;
  const rows = new Float32Array(vectors.length);
  for (let d = 0; d < dim; d++) {
    for (let node = 0; node < nodes; node++) rows[node * dim + d] = vectors[d * nodes + node];
  }
  return rows;
}

/** Product of `dim` numbers from two places on; several sums at a time, as this is where the time goes. */
function product(a, from, b, other, dim) {
  let first = 0;
  let second = 0;
  let third = 0;
  let fourth = 0;
  let d = 0;
  for (; d + 3 < dim; d += 4) {
    first += a[from + d] * b[other + d];
    second += a[from + d + 1] * b[other + d + 1];
    third += a[from + d + 2] * b[other + d + 2];
    fourth += a[from + d + 3] * b[other + d + 3];
  }
  for (; d < dim; d++) first += a[from + d] * b[other + d];
  return first + second + third + fourth;
}

/** The best match of each node of one map in the other, and back: {forth, best, back}. */
function mutualMatches(source, target) {
  const { dim } = source;
  const [rows, columns] = [nodeVectors(source), nodeVectors(target)];
  const [n, m] = [rows.length / dim, columns.length / dim];
  const [forth, back] = [new Int32Array(n), new Int32Array(m)];
  const [best, bestBack] = [new Float32Array(n).fill(-2), new Float32Array(m).fill(-2)];
  for (let i = 0; i < n; i++) {
    for (let j = 0; j < m; j++) {
      const cosine = product(rows, i * dim, columns, j * dim, dim);
      if (cosine > best[i]) {
        best[i] = cosine;
        forth[i] = j;
      }
      if (cosine > bestBack[j]) {
        bestBack[j] = cosine;
        back[j] = i;
      }
    }
  }
  return { forth, best, back };
}

/** The smooth map from one image to another, as a function of places, through the mutual matches of their nodes. */
export function smoothMap(source, target, grid, stiffness = 3, outlier = 0.033) {
  const [nodes, others] = [nodePlaces(source.side), nodePlaces(target.side)];
  const { forth, best, back } = mutualMatches(source, target);
  const believed = nodes.map(
    (node, i) => Math.exp(-squaredDistance(nodes[back[forth[i]]], node) / 0.05 ** 2) * Math.max(best[i], 0) ** 2,
  );
  const basisAt = smoothBasis(grid);
  const basis = nodes.map(basisAt);
  const moved = nodes.map((node, i) => [others[forth[i]][0] - node[0], others[forth[i]][1] - node[1]]);
  const size = basis[0].length;
  let trusted = believed;
  let coefficients;
  for (let step = 0; step < 4; step++) {
    const matrix = Array.from({ length: size }, () => new Float64Array(size));
    const sides = [new Float64Array(size), new Float64Array(size)];
    basis.forEach((row, i) => {
      for (let a = 0; a < size; a++) {
        const weighted = row[a] * trusted[i];
        for (let b = 0; b <= a; b++) matrix[a][b] += weighted * row[b];
        sides[0][a] += weighted * moved[i][0];
        sides[1][a] += weighted * moved[i][1];
      }
    });
    for (let a = 0; a < size; a++) matrix[a][a] += stiffness * ([1e-4, 1e-2, 1e-2][a] ?? 1);
    coefficients = solved(matrix, sides);
    trusted = believed.map((weight, i) => {
      const residual = squaredDistance(dots(basis[i], coefficients), moved[i]);
      return weight / (1 + residual / outlier ** 2) ** 2;
    });
  }
  return (place) => {
    const [x, y] = dots(basisAt(place), coefficients);
    return [place[0] + x, place[1] + y];
  };
}

function dots(row, columns) {
  return columns.map((column) => row.reduce((sum, value, index) => sum + value * column[index], 0));
}

function argmax(values) {
  let best = 0;
  for (let i = 1; i < values.length; i++) if (values[i] > values[best]) best = i;
  return best;
}

/** Softmax of logits; -Infinity has no share. */
function softmax(logits) {
  const highest = logits[argmax(logits)];
  const shares = logits.map((logit) => Math.exp(logit - highest));
  const total = shares.reduce((sum, share) => sum + share, 0);
  return shares.map((share) => share / total);
}

/**
 * Where similarity [side * side] and a guess agree best, and how sure that is.
 * @param settings `temperature`, `map_spread`, `reach` and `confidence` of the Python matcher
 * @returns {place: [x, y], confidence}
 */
export function settle(similar, guess, settings) {
  const nodes = nodePlaces(Math.sqrt(similar.length));
  const logits = Float64Array.from(
    similar,
    (value, i) => value / settings.temperature - squaredDistance(guess, nodes[i]) / (2 * settings.map_spread ** 2),
  );
  const best = nodes[argmax(logits)];
  const shares = softmax(
    logits.map((logit, i) => (squaredDistance(best, nodes[i]) < settings.reach ** 2 ? logit : -Infinity)),
  );
  const place = [0, 1].map((axis) => shares.reduce((sum, share, i) => sum + share * nodes[i][axis], 0));
  return { place, confidence: confidence(similar, place, nodes, settings) };
}

function confidence(similar, place, nodes, { temperature, confidence: [ofSpread, ofUnlike, constant] }) {
  const posterior = softmax(Float64Array.from(similar, (value) => value / temperature));
  const spread = posterior.reduce((sum, share, i) => sum + share * Math.sqrt(squaredDistance(place, nodes[i])), 0);
  const unlike = Math.max(0, 1 - similar[argmax(similar)]);
  const doubt = ofSpread * Math.log(spread + 0.005) + ofUnlike * Math.log(unlike + 0.02);
  return 1 / (1 + Math.exp(doubt - constant));
}
