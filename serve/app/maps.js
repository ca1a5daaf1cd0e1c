// Draws the map of a class over the photo. The answer brings each map as a few numbers, for example 7 x 7.

const MAP_COLOR = [255, 106, 0]; // one hue; the photo below is grey, so that all colour is the map's
const MAP_PIXELS = 192; // side of the drawn map; CSS enlarges it

// Returns { height, width, values }, values from 0 to 1, row by row.
const readMap = (choice) => {
  const [height, width] = choice.dataset.size.split('x').map(Number);
  const bytes = atob(choice.dataset.map);
  return { height, width, values: Array.from(bytes, (byte) => byte.charCodeAt(0) / 255) };
};

// The four weights of cubic interpolation (Keys 1981, a = -0.5) at a distance of 0 to 1 behind the second sample.
const cubicWeights = (t) => [
  ((-0.5 * t + 1) * t - 0.5) * t, (1.5 * t - 2.5) * t * t + 1, ((-1.5 * t + 2) * t + 0.5) * t, (0.5 * t - 0.5) * t * t,
];

// Enlarges `size` samples, `stride` apart from `start` on, to MAP_PIXELS; samples outside repeat the border.
const enlargeLine = (values, start, stride, size) => Float32Array.from({ length: MAP_PIXELS }, (_, pixel) => {
  const place = (pixel + 0.5) * size / MAP_PIXELS - 0.5, first = Math.floor(place);
  return cubicWeights(place - first).reduce((sum, weight, each) => {
    const sample = Math.min(size - 1, Math.max(0, first - 1 + each));
    return sum + weight * values[start + sample * stride];
  }, 0);
});

// Returns the map at MAP_PIXELS x MAP_PIXELS, smooth, 0 to 1.
const enlargeMap = ({ height, width, values }) => {
  const rows = Array.from({ length: height }, (_, row) => enlargeLine(values, row * width, 1, width));
  const tall = Float32Array.from(rows.flatMap((row) => [...row]));
  const columns = Array.from({ length: MAP_PIXELS }, (_, column) => enlargeLine(tall, column, MAP_PIXELS, height));
  return Float32Array.from({ length: MAP_PIXELS ** 2 }, (_, pixel) =>
    Math.min(1, Math.max(0, columns[pixel % MAP_PIXELS][Math.floor(pixel / MAP_PIXELS)])));
};

// Draws the map of a choice on a canvas. `strength`, 0 to 1, is lower for a class that is not likely.
const drawMap = (canvas, choice) => {
  const strength = Number(choice.dataset.strength), drawing = canvas.getContext('2d');
  canvas.width = canvas.height = MAP_PIXELS;
  const pixels = drawing.createImageData(MAP_PIXELS, MAP_PIXELS);
  enlargeMap(readMap(choice)).forEach((value, pixel) => {
    pixels.data.set(MAP_COLOR, 4 * pixel);
    pixels.data[4 * pixel + 3] = Math.round(255 * strength * value);
  });
  drawing.putImageData(pixels, 0, 0);
};
