/** A surface over a grid: colours on a canvas, and isolines as an SVG path. */

/** Heights scaled to [0, 1], with more contrast for low ones. */
export function leveled(values) {
  const sorted = Array.from(values)
    .filter(Number.isFinite)
    .sort((a, b) => a - b);
  const [low, high, middle] = [sorted[0], sorted.at(-1), sorted[sorted.length >> 2]];
  const unit = (middle - low) / 2 || 1;
  const most = Math.log1p((high - low) / unit) || 1;
  return Float64Array.from(values, (value) => (Number.isFinite(value) ? Math.log1p((value - low) / unit) / most : 1));
}

/** The isoline of a height by marching squares: a segment for each cell. Coordinates go from 0 to `size`. */
export function contour(levels, count, height, size) {
  const at = (column, row) => levels[row * count + column];
  const step = size / (count - 1);
  let path = "";
  for (let row = 0; row < count - 1; row += 1) {
    for (let column = 0; column < count - 1; column += 1) {
      const corners = [
        [column, row],
        [column + 1, row],
        [column + 1, row + 1],
        [column, row + 1],
      ];
      const crossed = [];
      for (let edge = 0; edge < 4; edge += 1) {
        const [[x1, y1], [x2, y2]] = [corners[edge], corners[(edge + 1) % 4]];
        const [a, b] = [at(x1, y1) - height, at(x2, y2) - height];
        if (a < 0 === b < 0) continue;
        const part = a / (a - b);
        crossed.push([(x1 + part * (x2 - x1)) * step, size - (y1 + part * (y2 - y1)) * step]);
      }
      for (let i = 0; i + 1 < crossed.length; i += 2)
        path += `M${crossed[i].map(brief).join(" ")}L${crossed[i + 1].map(brief).join(" ")}`;
    }
  }
  return path;
}

const brief = (value) => value.toFixed(2);

/** Paint levels from the colour `deep` (low) to `flat` (high), three numbers each; one pixel for each grid point. */
export function paint(canvas, levels, count, deep, flat) {
  canvas.width = count;
  canvas.height = count;
  const pen = canvas.getContext("2d");
  const pixels = pen.createImageData(count, count);
  for (let row = 0; row < count; row += 1) {
    for (let column = 0; column < count; column += 1) {
      const part = 0.72 * (1 - levels[row * count + column]) ** 1.3;
      const pixel = 4 * ((count - 1 - row) * count + column);
      for (let c = 0; c < 3; c += 1) pixels.data[pixel + c] = flat[c] + part * (deep[c] - flat[c]);
      pixels.data[pixel + 3] = 255;
    }
  }
  pen.putImageData(pixels, 0, 0);
}
