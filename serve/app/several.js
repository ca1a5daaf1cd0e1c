// Answers several photos one after another, and lists them as a contact sheet; a click on one shows its whole answer.

const MOST_PHOTOS = 50; // of one drop
const isPhoto = (file) => !file.type || file.type.startsWith('image/');
const sheet = () => document.querySelector('#shown .sheet');
const findInSheet = (selector) => sheet().querySelector(selector);

let listed = []; // { name, html, trouble } of each finished photo of the sheet
let thumbnails = []; // their addresses, until the next sheet
let isFollowing = true; // whether the answer box follows the sheet; a click on a photo of the sheet ends that

const readGuesses = (html) => {
  const read = new DOMParser().parseFromString(html, 'text/html');
  const guesses = [...read.querySelectorAll('.choice')].map((each) => [each.querySelector('.name').textContent, each.dataset.share]);
  return { guesses, refusal: read.querySelector('.refusal')?.textContent ?? '' };
};

// A spreadsheet would run a cell that starts with one of these characters as a formula.
const quoteCell = (text) => `"${String(text).replace(/^[=+\-@\t\r]/, "'$&").replaceAll('"', '""')}"`;

// Returns the sheet as a table; the byte order mark tells spreadsheets that it is UTF-8.
const writeTable = () => {
  const ranks = [1, 2, 3, 4, 5];
  const head = ['path', ...ranks.flatMap((rank) => [`class_${rank}`, `probability_${rank}`]), 'error'];
  const rows = listed.map(({ name, html, trouble }) => {
    const { guesses, refusal } = readGuesses(html);
    return [name, ...ranks.flatMap((rank) => guesses[rank - 1] ?? ['', '']), trouble || refusal];
  });
  const text = [head, ...rows].map((row) => row.map(quoteCell).join(',')).join('\r\n');
  return new Blob(['\ufeff', text], { type: 'text/csv' });
};

const addTile = (uri, name) => {
  const tile = document.createElement('button'), words = document.createElement('span'), label = document.createElement('small');
  tile.type = 'button';
  tile.className = 'tile';
  tile.setAttribute('aria-pressed', 'false');
  words.textContent = 'Waiting…';
  label.textContent = name;
  tile.append(Object.assign(new Image(), { src: uri, alt: '' }), words, label);
  findInSheet('.tiles').append(tile);
  return tile;
};

const markTile = (tile) => sheet().querySelectorAll('.tile').forEach((each) => each.setAttribute('aria-pressed', String(each === tile)));

const showListed = (entry, tile) => {
  markTile(tile);
  showError(entry.trouble);
  if (entry.html) putAnswer(latest = { html: entry.html, example: null });
};

const openSheet = (photos) => {
  thumbnails.forEach((uri) => URL.revokeObjectURL(uri));
  thumbnails = photos.map((file) => URL.createObjectURL(file));
  listed = [];
  isFollowing = true;
  sheet().hidden = false;
  findInSheet('.tiles').replaceChildren();
  findInSheet('.table').hidden = true;
  findInSheet('.stop').hidden = false;
  return photos.map((file, number) => addTile(thumbnails[number], file.name));
};

const closeRun = (tiles, isWhole) => {
  tiles.slice(listed.length).forEach((tile) => { tile.querySelector('span').textContent = 'Not processed'; });
  findInSheet('.done').textContent = `${isWhole ? '' : 'Stopped: '}${listed.length} of ${tiles.length} photos`;
  findInSheet('.table').hidden = !listed.length;
  findInSheet('.stop').hidden = true;
};

// Answers one photo of a sheet, and shows it if the visitor has not chosen another photo of the sheet meanwhile.
const answerListed = async (file, tile, uri, signal) => {
  const entry = { name: file.name, html: '', trouble: '' };
  try {
    const setState = isFollowing ? showWaiting(uri, false, signal) : () => {};
    entry.html = await sendChoice({ file, name: file.name }, signal, setState);
  } catch (error) {
    if (signal.aborted || !(error instanceof Refusal)) throw error;
    entry.trouble = error.message;
  }
  listed.push(entry);
  const [first] = readGuesses(entry.html).guesses;
  tile.querySelector('span').textContent = first ? first[0] : 'No answer';
  tile.addEventListener('click', () => { isFollowing = false; showListed(entry, tile); scrollToAnswer(); });
  if (isFollowing) showListed(entry, tile);
};

const chooseSeveral = async (files) => {
  const photos = files.filter(isPhoto), numOthers = files.length - photos.length, numBeyond = Math.max(0, photos.length - MOST_PHOTOS);
  const reasons = [];
  if (numOthers) reasons.push(`Left out, because only photos are answered: ${numOthers} of ${files.length} files.`);
  if (numBeyond) reasons.push(`At most ${MOST_PHOTOS} photos are taken at once: ${numBeyond} are left out.`);
  if (photos.length < 2) {
    if (photos.length) choosePhoto(photos[0]);
    return showError(reasons.join(' '));
  }

  markExample(null);
  const own = begin(), tiles = openSheet(photos.slice(0, MOST_PHOTOS));
  showError(reasons.join(' '));
  scrollToAnswer();
  try {
    for (const [number, tile] of tiles.entries()) {
      findInSheet('.done').textContent = `Photo ${number + 1} of ${tiles.length}`;
      await answerListed(photos[number], tile, thumbnails[number], own.signal);
    }
    announce(`${listed.length} photos are answered.`);
  } catch (error) {
    reportFault(error, own.signal);
  } finally {
    if (tiles[0].isConnected) closeRun(tiles, listed.length === tiles.length);
    if (own === current) { current = null; putAnswer(latest); }
  }
};

document.addEventListener('click', (event) => {
  if (event.target.closest('#shown .table')) saveFile(writeTable(), 'predictions.csv');
  if (event.target.closest('#shown .stop')) cancel();
});
