/* prep._transcode: write a JPEG again with restart markers, without loss.

   transcode(data, interval) returns the JPEG `data` with a restart marker after every `interval` MCUs and with optimised
   Huffman tables. The quantized coefficients are not changed. The bytes are those of
   `jpegtran -copy all -optimize -restart {interval}B`, which prep/restarts.py runs where this extension is missing.

   It uses only the public interface of libjpeg (version 6b or later, libjpeg-turbo, mozjpeg). Like jpegtran it reads
   from a stream: libjpeg-turbo finds other damage in data that is completely in memory. libjpeg's own destination in
   memory is not used: after an error it does not say which memory to free. */

#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include <setjmp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <jpeglib.h>
#include <jerror.h>

#define MOST_MEMORY 1000000000L /* bytes that libjpeg may allocate: 89 million pixels in 4:4:4 need 540 MB */
#define MARKER_BYTES 0xFFFF     /* of an APPn or COM marker that are kept: all */
#define NUM_APP_MARKERS 16
#define MOST_INTERVAL 0xFFFF  /* MCUs between restart markers */
#define EXPECTED_GROWTH 65536 /* bytes; a larger result is allocated again */

/* Errors and warnings. */

/* libjpeg's error handler, with the place to return to after an error or a warning, and its message. */
typedef struct {
    struct jpeg_error_mgr base; /* first, so that a pointer to it is a pointer to this */
    jmp_buf on_error;
    char message[JMSG_LENGTH_MAX];
} Errors;

static void raise_error(j_common_ptr info)
{
    Errors *errors = (Errors *)info->err;
    (*info->err->format_message)(info, errors->message);
    longjmp(errors->on_error, 1);
}

/* A warning (level below 0) is an error too: damaged data must not be written again as if it were sound. */
static void raise_warning(j_common_ptr info, int level)
{
    if (level < 0)
        raise_error(info);
}

static void print_nothing(j_common_ptr info)
{
    (void)info;
}

/* The destination: one block of memory, doubled when it is full. */

typedef struct {
    struct jpeg_destination_mgr base; /* first, so that a pointer to it is a pointer to this */
    unsigned char *bytes;
    size_t capacity;
} Output;

static void start_output(j_compress_ptr info)
{
    Output *output = (Output *)info->dest;
    output->base.next_output_byte = output->bytes;
    output->base.free_in_buffer = output->capacity;
}

static boolean grow_output(j_compress_ptr info)
{
    Output *output = (Output *)info->dest;
    unsigned char *larger = realloc(output->bytes, 2 * output->capacity);
    if (!larger)
        ERREXIT1(info, JERR_OUT_OF_MEMORY, 0);
    output->bytes = larger;
    output->base.next_output_byte = larger + output->capacity;
    output->base.free_in_buffer = output->capacity;
    output->capacity *= 2;
    return TRUE;
}

static void end_output(j_compress_ptr info)
{
    (void)info;
}

static int open_output(Output *output, size_t capacity)
{
    output->base.init_destination = start_output;
    output->base.empty_output_buffer = grow_output;
    output->base.term_destination = end_output;
    output->bytes = malloc(capacity);
    output->capacity = capacity;
    return output->bytes != NULL;
}

static size_t output_size(const Output *output)
{
    return output->capacity - output->base.free_in_buffer;
}

/* Transcoding. */

static int has_text(jpeg_saved_marker_ptr marker, int code, const char *text, size_t size)
{
    return marker->marker == code && marker->data_length >= size && !memcmp(marker->data, text, size);
}

/* Copy APPn and COM markers, except those that libjpeg writes itself, as jpegtran does. */
static void copy_markers(j_decompress_ptr source, j_compress_ptr target)
{
    jpeg_saved_marker_ptr marker;
    for (marker = source->marker_list; marker; marker = marker->next) {
        if (target->write_JFIF_header && has_text(marker, JPEG_APP0, "JFIF", 5))
            continue;
        if (target->write_Adobe_marker && has_text(marker, JPEG_APP0 + 14, "Adobe", 5))
            continue;
        jpeg_write_marker(target, marker->marker, marker->data, marker->data_length);
    }
}

/* Transcode the JPEG in `input` to `output`, which is open; return 1, or 0 with a message in `errors`. */
static int transcode(FILE *input, unsigned int interval, Errors *errors, Output *output)
{
    struct jpeg_decompress_struct source;
    struct jpeg_compress_struct target;
    jvirt_barray_ptr *coefficients;
    int i;

    /* Both structures are zero before anything can fail, so that destroying them is always valid. */
    memset(&source, 0, sizeof source);
    memset(&target, 0, sizeof target);
    source.err = target.err = jpeg_std_error(&errors->base);
    errors->base.error_exit = raise_error;
    errors->base.emit_message = raise_warning;
    errors->base.output_message = print_nothing;
    if (setjmp(errors->on_error)) {
        jpeg_destroy_compress(&target);
        jpeg_destroy_decompress(&source);
        return 0;
    }
    jpeg_create_decompress(&source);
    jpeg_create_compress(&target);
    source.mem->max_memory_to_use = target.mem->max_memory_to_use = MOST_MEMORY;

    /* Read the coefficients and the markers. */
    jpeg_stdio_src(&source, input);
    jpeg_save_markers(&source, JPEG_COM, MARKER_BYTES);
    for (i = 0; i < NUM_APP_MARKERS; i++)
        jpeg_save_markers(&source, JPEG_APP0 + i, MARKER_BYTES);
    jpeg_read_header(&source, TRUE);
    coefficients = jpeg_read_coefficients(&source);

    /* Write them. A JPEG that begins with EXIF has no JFIF marker before it, and gets none. */
#ifdef JPEG_C_PARAM_SUPPORTED /* mozjpeg would write a progressive JPEG; the same as `jpegtran -revert` */
    jpeg_c_set_int_param(&target, JINT_COMPRESS_PROFILE, JCP_FASTEST);
#endif
    jpeg_copy_critical_parameters(&source, &target);
    target.optimize_coding = TRUE;
    target.restart_interval = interval;
    if (source.marker_list && has_text(source.marker_list, JPEG_APP0 + 1, "Exif\0\0", 6))
        target.write_JFIF_header = FALSE;
    target.dest = &output->base;
    jpeg_write_coefficients(&target, coefficients);
    copy_markers(&source, &target);
    jpeg_finish_compress(&target);
    jpeg_finish_decompress(&source);
    jpeg_destroy_compress(&target);
    jpeg_destroy_decompress(&source);
    return 1;
}

static PyObject *transcode_bytes(PyObject *module, PyObject *arguments)
{
    Py_buffer data;
    long interval;
    Errors errors;
    Output output;
    FILE *input;
    int is_done;
    PyObject *result = NULL;

    (void)module;
    if (!PyArg_ParseTuple(arguments, "y*l", &data, &interval))
        return NULL;
    if (interval < 0 || interval > MOST_INTERVAL) {
        PyBuffer_Release(&data);
        return PyErr_Format(PyExc_ValueError, "a restart interval must be 0 to %d MCUs, got %ld", MOST_INTERVAL, interval);
    }
    input = fmemopen(data.buf, (size_t)data.len, "rb");
    if (!input || !open_output(&output, (size_t)data.len + EXPECTED_GROWTH)) {
        if (input)
            fclose(input);
        PyBuffer_Release(&data);
        return PyErr_NoMemory();
    }
    Py_BEGIN_ALLOW_THREADS
    is_done = transcode(input, (unsigned int)interval, &errors, &output);
    Py_END_ALLOW_THREADS
    if (is_done)
        result = PyBytes_FromStringAndSize((const char *)output.bytes, (Py_ssize_t)output_size(&output));
    else
        PyErr_SetString(PyExc_ValueError, errors.message);
    free(output.bytes);
    fclose(input);
    PyBuffer_Release(&data);
    return result;
}

PyDoc_STRVAR(transcode_doc,
             "transcode(data, interval, /)\n--\n\n"
             "Return a JPEG with a restart marker after every `interval` MCUs; raise ValueError with libjpeg's error or "
             "warning.");

static PyMethodDef methods[] = {
    {"transcode", transcode_bytes, METH_VARARGS, transcode_doc},
    {NULL, NULL, 0, NULL},
};

static PyModuleDef_Slot slots[] = {{0, NULL}};

static struct PyModuleDef module = {
    PyModuleDef_HEAD_INIT, "prep._transcode", "Write a JPEG again with restart markers, without loss.", 0, methods,
    slots,                 NULL,              NULL,                                                     NULL,
};

PyMODINIT_FUNC PyInit__transcode(void)
{
    return PyModuleDef_Init(&module);
}
