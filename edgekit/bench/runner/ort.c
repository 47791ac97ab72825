/* ONNX Runtime through OrtApi, a table of functions that only ever grows at its end: the places of version 1, which
 * every release since 1.0 serves. Declared here by number, so that no header is needed. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "runner.h"

typedef void *Status; /* NULL is good */

enum slot {
    GET_ERROR_MESSAGE = 2,
    CREATE_ENV = 3,
    CREATE_SESSION = 7,
    RUN = 9,
    CREATE_SESSION_OPTIONS = 10,
    SET_INTRA_OP_THREADS = 24,
    SET_INTER_OP_THREADS = 25,
    INPUT_COUNT = 30,
    OUTPUT_COUNT = 31,
    INPUT_TYPE = 33,
    INPUT_NAME = 36,
    OUTPUT_NAME = 37,
    CREATE_TENSOR = 49,
    TENSOR_DATA = 51,
    CAST_TO_TENSOR_INFO = 55,
    ELEMENT_TYPE = 60,
    RANK = 61,
    DIMS = 62,
    TENSOR_INFO = 65,
    CREATE_CPU_MEMORY = 69,
    DEFAULT_ALLOCATOR = 78,
    RELEASE_VALUE = 96,
    RELEASE_TENSOR_INFO = 99,
};

static const int ONNX_TYPE[DTYPES] = {[FLOAT32] = 1, [INT32] = 6, [INT64] = 7};

struct api_base {
    void **(*get_api)(uint32_t version);
    const char *(*version)(void);
};

static const struct api_base *base;
static void **api;
static void *session, *memory;
static size_t inputs, outputs;
static char *input_names[MAX_TENSORS], *output_names[MAX_TENSORS];
static void *values[MAX_TENSORS], *results[MAX_TENSORS];

#define CALL(slot, ...) ((Status(*)(__VA_ARGS__))api[slot])

static void check(const char *phase, const char *what, Status status) {
    if (status) fail(phase, "ONNX Runtime: %s: %s", what, ((const char *(*)(Status))api[GET_ERROR_MESSAGE])(status));
}

static void ort_open(void *library) {
    const struct api_base *(*get_base)(void);
    *(void **)&get_base = symbol(library, "OrtGetApiBase");
    base = get_base();
    api = base ? base->get_api(1) : NULL;
    if (!api) fail("library", "the library does not serve version 1 of ONNX Runtime's C API");
}

static const char *ort_version(const char *path) {
    (void)path;
    return base->version();
}

static void ort_load(const char *model, const char *signature, int threads) {
    void *env, *options, *allocator;
    if (signature) fail("signature", "an ONNX file has no signatures, \"%s\" was asked for", signature);
    check("model", "environment", CALL(CREATE_ENV, int, const char *, void **)(3, "edgekit", &env));
    check("model", "options", CALL(CREATE_SESSION_OPTIONS, void **)(&options));
    check("model", "threads", CALL(SET_INTRA_OP_THREADS, void *, int)(options, threads));
    check("model", "threads", CALL(SET_INTER_OP_THREADS, void *, int)(options, 1));
    check("model", model, CALL(CREATE_SESSION, void *, const char *, void *, void **)(env, model, options, &session));
    check("model", "memory", CALL(CREATE_CPU_MEMORY, int, int, void **)(1, 0, &memory));
    check("model", "memory", CALL(DEFAULT_ALLOCATOR, void **)(&allocator));
    check("model", "inputs", CALL(INPUT_COUNT, void *, size_t *)(session, &inputs));
    check("model", "outputs", CALL(OUTPUT_COUNT, void *, size_t *)(session, &outputs));
    if (inputs > MAX_TENSORS || outputs > MAX_TENSORS)
        fail("model", "has %zu inputs and %zu outputs, at most %d are served", inputs, outputs, MAX_TENSORS);
    for (size_t i = 0; i < inputs; i++)
        check("model", "inputs",
              CALL(INPUT_NAME, void *, size_t, void *, char **)(session, i, allocator, &input_names[i]));
    for (size_t i = 0; i < outputs; i++)
        check("model", "outputs",
              CALL(OUTPUT_NAME, void *, size_t, void *, char **)(session, i, allocator, &output_names[i]));
}

static void release(void **value) {
    if (*value) ((void (*)(void *))api[RELEASE_VALUE])(*value);
    *value = NULL;
}

static void ort_feed(const struct tensors *example) {
    for (size_t i = 0; i < inputs; i++) {
        const struct tensor *given = NULL;
        for (int j = 0; j < example->count; j++)
            if (!strcmp(example->at[j].name, input_names[i])) given = &example->at[j];
        if (!given) fail("inputs", "the model's input %s is not in the inputs file", input_names[i]);
        release(&values[i]);
        check("inputs", given->name,
              CALL(CREATE_TENSOR, void *, void *, size_t, const int64_t *, size_t, int, void **)(
                  memory, given->data, given->bytes, given->dims, (size_t)given->rank, ONNX_TYPE[given->dtype],
                  &values[i]));
    }
    for (size_t i = 0; i < outputs; i++) release(&results[i]);
}

static void ort_run(void) {
    for (size_t i = 0; i < outputs; i++) release(&results[i]); /* as Python frees the last run's arrays */
    check("run", "run",
          CALL(RUN, void *, void *, char *const *, void *const *, size_t, char *const *, size_t, void **)(
              session, NULL, input_names, values, inputs, output_names, outputs, results));
}

static void ort_fetch(struct tensors *found) {
    found->count = (int)outputs;
    for (size_t i = 0; i < outputs; i++) {
        struct tensor *tensor = &found->at[i];
        void *info;
        int type, known = 0;
        size_t rank;
        snprintf(tensor->name, sizeof tensor->name, "%s", output_names[i]);
        check("outputs", tensor->name, CALL(TENSOR_INFO, void *, void **)(results[i], &info));
        check("outputs", tensor->name, CALL(ELEMENT_TYPE, void *, int *)(info, &type));
        check("outputs", tensor->name, CALL(RANK, void *, size_t *)(info, &rank));
        for (int d = 0; d < DTYPES; d++)
            if (ONNX_TYPE[d] == type) tensor->dtype = (enum dtype)d, known = 1;
        if (!known || rank > MAX_RANK)
            fail("outputs", "%s has element type %d and rank %zu, which this runner does not write", tensor->name, type,
                 rank);
        check("outputs", tensor->name, CALL(DIMS, void *, int64_t *, size_t)(info, tensor->dims, rank));
        check("outputs", tensor->name, CALL(TENSOR_DATA, void *, void **)(results[i], &tensor->data));
        ((void (*)(void *))api[RELEASE_TENSOR_INFO])(info);
        tensor->rank = (int)rank;
        tensor->bytes = DTYPE_SIZE[tensor->dtype];
        for (size_t d = 0; d < rank; d++) tensor->bytes *= (size_t)tensor->dims[d];
    }
}

const struct runtime ORT = {"onnxruntime", ort_open, ort_version, ort_load, ort_feed, ort_run, ort_fetch};
