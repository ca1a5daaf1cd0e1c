/* loaders._read: read and splice the images of a part of a batch, without Python's global lock.

   The reader's threads would otherwise wait for each other: every read of a few kilobytes gives the lock away and has to
   get it back. loaders/reader.py and loaders/splice_reader.py do the same in Python where this extension is missing.
   It needs a C compiler and no library.

   Arrays are buffers of int64 in C order, one row per image; the columns are those of the enums below. */

#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include <errno.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/types.h>
#include <unistd.h>

#define NEAR_BYTES 4096 /* as in loaders/splice_reader.py */
#define MARKER_BYTES 2  /* also the least length of a segment */
#define SIZE_OFFSET 5   /* of height and width in a frame header */
#define SIZE_BYTES 4
#define END_OF_IMAGE 0xD9 /* markers: ITU-T T.81, table B.1 */
#define FIRST_RESTART 0xD0
#define NUM_RESTARTS 8
#define BASELINE 0xC0
#define EXTENDED 0xC1
#define LARGEST (INT64_MAX / 4) /* of a number in a row, so that sums of a few of them are int64 */

#if PY_BIG_ENDIAN
#error "the numbers in SHARD.seg are little-endian"
#endif

enum { JOB_FILE, JOB_POSITION, JOB_START, JOB_END, JOB_COLUMNS };

enum {
    SEGMENTS_FILE, /* descriptors */
    TAR_FILE,
    FIRST, /* position of the lengths in SHARD.seg */
    NUM_LENGTHS,
    OFFSET, /* of the JPEG in its tar */
    SIZE,   /* bytes */
    TABLES_START,
    TABLES_SIZE,
    FRAME,
    SEGMENTS_PER_ROW,
    TOP, /* the needed rows and columns of segments */
    BOTTOM,
    LEFT,
    RIGHT,
    HEIGHT, /* of the spliced image, pixels */
    WIDTH,
    START, /* of the spliced image in the buffer */
    COLUMNS
};

enum { STATUS, END, NUMBER, RESULT_COLUMNS }; /* NUMBER: bytes read; or errno, if STATUS is UNREADABLE */
enum { DONE, CONTRADICTORY, UNREADABLE };     /* values of STATUS */

typedef struct {
    unsigned char *bytes;
    int64_t size;
} Target;

/* Fill `target` from a file; return 0, or -1 with errno, which is 0 if the file ends before. */
static int fill(int file, unsigned char *target, int64_t size, int64_t position)
{
    while (size > 0) {
        ssize_t count = pread(file, target, (size_t)size, (off_t)position);
        if (count < 0 && errno == EINTR)
            continue;
        if (count <= 0) {
            if (!count)
                errno = 0;
            return -1;
        }
        target += count;
        position += count;
        size -= count;
    }
    return 0;
}

static int64_t sum(const uint16_t *lengths, int64_t count)
{
    int64_t total = 0, i;
    for (i = 0; i < count; i++)
        total += lengths[i];
    return total;
}

static int are_segments(const uint16_t *lengths, int64_t count)
{
    int64_t i;
    for (i = 0; i < count; i++)
        if (lengths[i] < MARKER_BYTES)
            return 0;
    return 1;
}

static int marker_after(int64_t number, int64_t count)
{
    return number == count - 1 ? END_OF_IMAGE : FIRST_RESTART + (int)(number % NUM_RESTARTS);
}

/* Check that a row describes a part of the image, so that no access below is outside of its memory. */
static int is_consistent(const int64_t *row, const Target *target, int64_t head_size)
{
    int64_t columns = row[SEGMENTS_PER_ROW];
    int i;
    for (i = FIRST; i < COLUMNS; i++) /* all except the descriptors */
        if (row[i] < 0 || row[i] > LARGEST)
            return 0;
    if (columns < 1 || row[LEFT] >= row[RIGHT] || row[RIGHT] > columns)
        return 0;
    if (row[TOP] >= row[BOTTOM] || row[BOTTOM] > row[NUM_LENGTHS] / columns)
        return 0;
    if (row[FRAME] + SIZE_OFFSET + SIZE_BYTES > row[TABLES_SIZE] || row[TABLES_START] + row[TABLES_SIZE] > row[SIZE])
        return 0;
    return row[START] <= target->size - head_size - row[SIZE];
}

/* Check the marker that ends a segment, from its end. */
static int ends_here(const unsigned char *end, int64_t number, int64_t count)
{
    return end[-2] == 0xFF && end[-1] == marker_after(number, count);
}

/* Move the needed segments to `body`, number their markers, and set `*end`; return 0 if a marker is not in its place.
   The first needed segment is `gap` bytes after `body`. `number` counts the segments of the complete image, and
   `new_number` those of the spliced one. */
static int join(const int64_t *row, const uint16_t *lengths, unsigned char *body, int64_t gap, unsigned char **end)
{
    int64_t columns = row[SEGMENTS_PER_ROW], kept = row[RIGHT] - row[LEFT], y, x;
    int64_t needed = (row[BOTTOM] - row[TOP]) * kept, number = row[TOP] * columns + row[LEFT], new_number = 0;
    unsigned char *source = body + gap, *place = body;

    for (y = row[TOP]; y < row[BOTTOM]; y++) {
        int64_t size = sum(lengths + number, kept);
        /* The segment before this row; where no segment is left out it is the last one of the row above. */
        if (number && (y == row[TOP] || kept < columns) && !ends_here(source, number - 1, row[NUM_LENGTHS]))
            return 0;
        memmove(place, source, (size_t)size);
        source += size;
        for (x = 0; x < kept; x++, number++, new_number++) {
            place += lengths[number];
            if (!ends_here(place, number, row[NUM_LENGTHS]))
                return 0;
            place[-1] = (unsigned char)marker_after(new_number, needed);
        }
        if (y + 1 < row[BOTTOM])
            source += sum(lengths + number, columns - kept); /* the rest of this row, and the start of the next one */
        number += columns - kept;
    }
    *end = place;
    return 1;
}

/* Read the lengths, the tables and the needed segments of an image; write the spliced image to its place.

   In the buffer, from row[START] on:  head | tables | gap | needed segments, with others between them
   At the end:                         head | tables | needed segments
   The gap is what the file has between the tables and the first needed segment, or only the marker before it. */
static void splice_image(const int64_t *row, const Target *target, const Py_buffer *head, uint16_t *lengths,
                         int64_t *result)
{
    int64_t columns = row[SEGMENTS_PER_ROW], num_lengths = row[BOTTOM] * columns;
    int64_t scan = row[TABLES_START] + row[TABLES_SIZE], first, stop, gap;
    unsigned char *start = target->bytes + row[START], *tables = start + head->len, *body, *frame, *end;
    int failed;

    /* Where the segments are. Lengths that cannot be read, are too short, or end beyond the image, contradict it. */
    result[STATUS] = CONTRADICTORY;
    result[END] = 0;
    result[NUMBER] = num_lengths * (int64_t)sizeof *lengths;
    if (fill((int)row[SEGMENTS_FILE], (unsigned char *)lengths, result[NUMBER], row[FIRST]) < 0 ||
        !are_segments(lengths, num_lengths) || scan + sum(lengths, num_lengths) > row[SIZE])
        return;
    first = sum(lengths, row[TOP] * columns + row[LEFT]);
    stop = sum(lengths, (row[BOTTOM] - 1) * columns + row[RIGHT]);

    /* Read the tables, and the range of the segments with the marker before it; in one read if little is between. */
    gap = first <= NEAR_BYTES ? first : MARKER_BYTES;
    body = tables + row[TABLES_SIZE];
    if (gap == first)
        failed = fill((int)row[TAR_FILE], tables, row[TABLES_SIZE] + stop, row[OFFSET] + row[TABLES_START]);
    else
        failed = fill((int)row[TAR_FILE], tables, row[TABLES_SIZE], row[OFFSET] + row[TABLES_START]) ||
                 fill((int)row[TAR_FILE], body, gap + stop - first, row[OFFSET] + scan + first - gap);
    if (failed) {
        result[STATUS] = UNREADABLE;
        result[NUMBER] = errno;
        return;
    }
    result[NUMBER] += row[TABLES_SIZE] + gap + stop - first;

    /* Write the head, the size in the frame header, and the segments one after the other. */
    frame = tables + row[FRAME];
    if (frame[0] != 0xFF || (frame[1] != BASELINE && frame[1] != EXTENDED))
        return;
    memcpy(start, head->buf, (size_t)head->len);
    frame[SIZE_OFFSET] = (unsigned char)(row[HEIGHT] >> 8);
    frame[SIZE_OFFSET + 1] = (unsigned char)row[HEIGHT];
    frame[SIZE_OFFSET + 2] = (unsigned char)(row[WIDTH] >> 8);
    frame[SIZE_OFFSET + 3] = (unsigned char)row[WIDTH];
    if (join(row, lengths, body, gap, &end)) {
        result[STATUS] = DONE;
        result[END] = end - target->bytes;
    }
}

static int has_rows(const Py_buffer *array, Py_ssize_t columns, Py_ssize_t count)
{
    return array->len == count * columns * (Py_ssize_t)sizeof(int64_t);
}

static PyObject *splice(PyObject *module, PyObject *arguments)
{
    Py_buffer rows, head, buffer, results;
    PyObject *answer = NULL;
    uint16_t *lengths = NULL;
    Target target;
    int64_t most = 1;
    Py_ssize_t count, i;

    (void)module;
    if (!PyArg_ParseTuple(arguments, "y*y*w*w*", &rows, &head, &buffer, &results))
        return NULL;
    target.bytes = buffer.buf;
    target.size = buffer.len;
    count = rows.len / (Py_ssize_t)(COLUMNS * sizeof(int64_t));
    if (!has_rows(&rows, COLUMNS, count) || !has_rows(&results, RESULT_COLUMNS, count)) {
        PyErr_SetString(PyExc_ValueError, "rows and results must have a row for each image");
        goto end;
    }
    for (i = 0; i < count; i++) {
        const int64_t *row = (const int64_t *)rows.buf + i * COLUMNS;
        if (!is_consistent(row, &target, head.len)) {
            PyErr_Format(PyExc_ValueError, "row %zd is not a part of its image", i);
            goto end;
        }
        if (row[BOTTOM] * row[SEGMENTS_PER_ROW] > most)
            most = row[BOTTOM] * row[SEGMENTS_PER_ROW];
    }
    lengths = malloc((size_t)most * sizeof *lengths);
    if (!lengths) {
        PyErr_NoMemory();
        goto end;
    }
    Py_BEGIN_ALLOW_THREADS
    for (i = 0; i < count; i++)
        splice_image((const int64_t *)rows.buf + i * COLUMNS, &target, &head, lengths,
                     (int64_t *)results.buf + i * RESULT_COLUMNS);
    Py_END_ALLOW_THREADS
    answer = Py_NewRef(Py_None);
end:
    free(lengths);
    PyBuffer_Release(&rows);
    PyBuffer_Release(&head);
    PyBuffer_Release(&buffer);
    PyBuffer_Release(&results);
    return answer;
}

static PyObject *read_jobs(PyObject *module, PyObject *arguments)
{
    Py_buffer jobs, buffer;
    PyObject *answer = NULL;
    Py_ssize_t count, i;
    int error = 0;

    (void)module;
    if (!PyArg_ParseTuple(arguments, "y*w*", &jobs, &buffer))
        return NULL;
    count = jobs.len / (Py_ssize_t)(JOB_COLUMNS * sizeof(int64_t));
    if (!has_rows(&jobs, JOB_COLUMNS, count)) {
        PyErr_SetString(PyExc_ValueError, "jobs must have 4 columns");
        goto end;
    }
    for (i = 0; i < count; i++) {
        const int64_t *job = (const int64_t *)jobs.buf + i * JOB_COLUMNS;
        if (job[JOB_START] < 0 || job[JOB_START] > job[JOB_END] || job[JOB_END] > buffer.len) {
            PyErr_Format(PyExc_ValueError, "job %zd is outside of the buffer", i);
            goto end;
        }
    }
    Py_BEGIN_ALLOW_THREADS
    for (i = 0; i < count; i++) {
        const int64_t *job = (const int64_t *)jobs.buf + i * JOB_COLUMNS;
        unsigned char *place = (unsigned char *)buffer.buf + job[JOB_START];
        if (fill((int)job[JOB_FILE], place, job[JOB_END] - job[JOB_START], job[JOB_POSITION]) < 0) {
            error = errno;
            break;
        }
    }
    Py_END_ALLOW_THREADS
    answer = Py_BuildValue("ni", i, error);
end:
    PyBuffer_Release(&jobs);
    PyBuffer_Release(&buffer);
    return answer;
}

PyDoc_STRVAR(splice_doc,
             "splice(rows, head, buffer, results, /)\n--\n\n"
             "Read and splice the images of `rows`, int64 [P, 17], into `buffer`, each behind the bytes `head`. Fill\n"
             "`results`, int64 [P, 3]: status, end in the buffer, bytes read (or errno).");
PyDoc_STRVAR(read_doc,
             "read(jobs, buffer, /)\n--\n\n"
             "Fill parts of `buffer` from files; `jobs` is int64 [J, 4]: descriptor, position, start and end in the\n"
             "buffer. Return how many jobs are done, and the errno of the next one: 0 if its file ends before.");

static PyMethodDef methods[] = {
    {"splice", splice, METH_VARARGS, splice_doc},
    {"read", read_jobs, METH_VARARGS, read_doc},
    {NULL, NULL, 0, NULL},
};

static PyModuleDef_Slot slots[] = {{0, NULL}};

static struct PyModuleDef module = {
    PyModuleDef_HEAD_INIT, "loaders._read", "Read and splice images without Python's global lock.", 0, methods, slots,
    NULL,                  NULL,            NULL,
};

PyMODINIT_FUNC PyInit__read(void)
{
    return PyModuleDef_Init(&module);
}
