/* What the three parts share: runner.c (options, files, clocks, /proc, the document), ort.c and litert.c. */
#ifndef EDGEKIT_RUNNER_H
#define EDGEKIT_RUNNER_H

#include <stddef.h>
#include <stdint.h>
#include <stdnoreturn.h>

#define MAX_RANK 8
#define MAX_TENSORS 64
#define MAX_NAME 256

enum dtype { FLOAT32, INT32, INT64, DTYPES };
extern const char *const DTYPE_NAME[DTYPES];
extern const size_t DTYPE_SIZE[DTYPES];

struct tensor {
    char name[MAX_NAME];
    enum dtype dtype;
    int rank;
    int64_t dims[MAX_RANK];
    size_t bytes;
    void *data;
    size_t room; /* of the allocation behind data, where it is ours */
};

struct tensors {
    int count;
    struct tensor at[MAX_TENSORS];
};

/* A runtime: one model in one process. Each function ends the process through fail() where it cannot go on. */
struct runtime {
    const char *name;
    void (*open)(void *library);              /* finds the functions */
    const char *(*version)(const char *path); /* of the library; may read it, so it is asked last */
    void (*load)(const char *model, const char *signature, int threads);
    void (*feed)(const struct tensors *inputs); /* takes one example; the tensors stay alive until the next one */
    void (*run)(void);                          /* what is timed */
    void (*fetch)(struct tensors *outputs);     /* points at the outputs of the last run */
};
extern const struct runtime ORT, LITERT;

/* Prints {"error": {"phase": ..., "message": ...}} and ends the process with 1. */
noreturn void fail(const char *phase, const char *message, ...) __attribute__((format(printf, 2, 3)));

/* dlsym, or fail("library", ...). */
void *symbol(void *library, const char *name);

/* "int64[1, 128]" in one of a few static buffers, for messages. */
const char *shape_of(enum dtype dtype, int rank, const int64_t *dims);

#endif
