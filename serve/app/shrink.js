// Makes a photo smaller before it is sent. The network crops a square of a few hundred pixels, so a short side of 1,024
// pixels is enough. This also converts photos that only the browser can read, such as HEIC on Apple's devices, to JPEG.

const SHORT_SIDE = 1024; // pixels
const FEW_BYTES = 1500000; // a smaller file in a format that the server reads is sent as it is
const QUALITY = 0.92; // of the JPEG
const HEAD_BYTES = 1 << 16; // a preview inside of a JPEG's EXIF data ends before

// Returns whether the server has something to say about a file that the browser would hide: that a photo ends early, or
// that a picture is animated.
const needsServer = async (file) => {
  const bytes = new Uint8Array(await file.arrayBuffer());
  const head = new TextDecoder('latin1').decode(bytes.subarray(0, HEAD_BYTES));
  if (head.startsWith('GIF8')) return true;
  if (head.startsWith('RIFF')) return head.slice(0, 64).includes('ANIM');
  if (head.startsWith('\x89PNG')) return head.includes('acTL');
  if (!head.startsWith('\xff\xd8')) return false;
  for (let place = bytes.indexOf(0xff, HEAD_BYTES); place >= 0; place = bytes.indexOf(0xff, place + 1)) {
    if (bytes[place + 1] === 0xd9) return false; // the end mark of the photo
  }
  return true;
};

const decodePhoto = async (file) => {
  const photo = new Image();
  photo.src = URL.createObjectURL(file);
  try {
    await photo.decode();
    return photo;
  } catch (error) {
    return null; // the server says what is wrong with it
  } finally {
    URL.revokeObjectURL(photo.src);
  }
};

// Returns the file itself, or a JPEG of it.
const shrinkPhoto = async (file) => {
  const isReadable = ACCEPTED.includes(file.type);
  if (isReadable && file.size <= FEW_BYTES) return file;
  if (isReadable && file.size <= MAX_UPLOAD && await needsServer(file)) return file;
  const photo = await decodePhoto(file);
  if (!photo) return file;

  // Draw on white, because a JPEG has no transparency.
  const { naturalWidth: width, naturalHeight: height } = photo;
  const scale = Math.min(1, SHORT_SIDE / Math.min(width, height)), canvas = document.createElement('canvas');
  canvas.width = Math.max(1, Math.round(width * scale));
  canvas.height = Math.max(1, Math.round(height * scale));
  const drawing = canvas.getContext('2d');
  drawing.fillStyle = 'white';
  drawing.fillRect(0, 0, canvas.width, canvas.height);
  drawing.imageSmoothingQuality = 'high';
  drawing.drawImage(photo, 0, 0, canvas.width, canvas.height);
  const smaller = await new Promise((resolve) => canvas.toBlob(resolve, 'image/jpeg', QUALITY));
  return smaller && (smaller.size < file.size || !isReadable) ? smaller : file;
};
