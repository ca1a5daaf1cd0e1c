// Shows an answer: the map of the chosen class, its strength, the comparison with the photo, saving and sharing.

const ANSWER_KEY = 'penstock-answer'; // of the tab's storage: reload and back show the last answer again
const answerBox = () => document.querySelector('#shown .place');
const findInAnswer = (selector) => answerBox().querySelector(selector);

const showClass = () => {
  const choice = findInAnswer('.choice:has(:checked)');
  if (!choice) return;
  drawMap(findInAnswer('.map'), choice);
  findInAnswer('.map').setAttribute('aria-label', choice.dataset.where);
  findInAnswer('.meaning').textContent = choice.dataset.meaning;
};

// Remembers an answer until the tab is closed. If the storage is full or forbidden, a reload shows the first example.
const rememberAnswer = (answer) => {
  try {
    sessionStorage.removeItem(ANSWER_KEY);
    sessionStorage.setItem(ANSWER_KEY, JSON.stringify({ page: PAGE, ...answer }));
  } catch (error) { /* as above */ }
};

// Returns the remembered answer of this page and model, or null.
const recallAnswer = () => {
  try {
    const kept = JSON.parse(sessionStorage.getItem(ANSWER_KEY));
    return kept && kept.page === PAGE ? kept : null;
  } catch (error) {
    return null;
  }
};

// Shows an answer, { html, example }: HTML of the server, and the number of its example or null.
const putAnswer = (answer) => {
  answerBox().innerHTML = answer.html;
  answerBox().removeAttribute('aria-busy');
  markExample(answer.example);
  if (!findInAnswer('.choice')) return;
  showClass();
  findInAnswer('.share-picture').hidden = !navigator.canShare;
  rememberAnswer(answer);
};

// Scrolls a small screen to the answer. In a frame, as on the hub, the frame is as high as the page: scrolling inside it
// would move the top of the page out of reach.
const scrollToAnswer = () => {
  if (window.parent !== window) return;
  const { top, bottom } = answerBox().getBoundingClientRect();
  if (top >= 0 && bottom <= innerHeight) return;
  answerBox().scrollIntoView({ block: top < 0 || bottom - top > innerHeight ? 'start' : 'end' });
};

const compare = (isOn) => {
  if (findInAnswer('.layers')) findInAnswer('.layers').classList.toggle('comparing', isOn);
};

// Turns the pixels of a canvas grey, as CSS does. (Some browsers ignore the filter of a canvas.)
const turnGrey = (drawing, side) => {
  const pixels = drawing.getImageData(0, 0, side, side), { data } = pixels;
  for (let place = 0; place < data.length; place += 4) {
    const grey = 0.2126 * data[place] + 0.7152 * data[place + 1] + 0.0722 * data[place + 2];
    data[place] = data[place + 1] = data[place + 2] = grey;
  }
  drawing.putImageData(pixels, 0, 0);
};

// Returns the photo under the map with its classes below, as a PNG to keep.
const paintAnswer = async () => {
  // Read everything before the first pause: another answer may take the place of this one.
  const view = findInAnswer('.view'), map = findInAnswer('.map'), opacity = Number(findInAnswer('.slider input').value) / 100;
  const lines = [...answerBox().querySelectorAll('.choice')].map((choice) => ({
    name: choice.querySelector('.name').textContent, share: choice.querySelector('.share').textContent,
    isBold: choice.querySelector('input').checked,
  }));
  await view.decode();

  const side = 640, height = 34, canvas = document.createElement('canvas');
  canvas.width = side;
  canvas.height = side + height * (lines.length + 1);
  const drawing = canvas.getContext('2d');
  drawing.fillStyle = 'white';
  drawing.fillRect(0, 0, canvas.width, canvas.height);
  drawing.imageSmoothingEnabled = !view.classList.contains('pixels');
  drawing.drawImage(view, 0, 0, side, side);
  drawing.imageSmoothingEnabled = true;
  if (opacity) turnGrey(drawing, side);
  drawing.globalAlpha = opacity;
  drawing.drawImage(map, 0, 0, side, side);
  drawing.globalAlpha = 1;
  lines.forEach(({ name, share, isBold }, number) => {
    const y = side + height * (number + 1);
    drawing.fillStyle = '#1d2327';
    drawing.font = `${isBold ? 'bold ' : ''}20px system-ui, sans-serif`;
    drawing.textAlign = 'left';
    drawing.fillText(name, 16, y, side - 130);
    drawing.textAlign = 'right';
    drawing.fillText(share, side - 16, y);
  });
  return new Promise((resolve) => canvas.toBlob(resolve, 'image/png'));
};

const saveFile = (content, name) => {
  const link = Object.assign(document.createElement('a'), { href: URL.createObjectURL(content), download: name });
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 60000);
};

const shareAnswer = async () => {
  const files = [new File([await paintAnswer()], 'penstock.png', { type: 'image/png' })];
  try {
    if (navigator.canShare({ files })) await navigator.share({ files });
    else saveFile(files[0], files[0].name);
  } catch (error) {
    if (error.name !== 'AbortError') saveFile(files[0], files[0].name); // the visitor may have closed the dialog
  }
};
