/* LiteRT through libLiteRt.so's C functions, declared here so that no header is needed.
 *
 * They changed under the same names: since June 2026 a model is made in an environment. Which kind a library has is
 * asked of the function itself, see takes_environment(); a library that answers otherwise is refused. */
#define _GNU_SOURCE
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "runner.h"

typedef int Status; /* 0 is good */
enum { INVALID_ARGUMENT = 1 };
enum { ACCELERATOR_CPU = 1 };
enum { FOR_READING = 0, FOR_WRITING = 1 };

struct env_option { /* a tag and a tagged union */
    int tag;
    struct {
        int type;
        union {
            int64_t integer;
            const void *pointer;
        } value;
    } any;
};
enum { TAG_ACCELERATORS = 24, TAG_LOG_SEVERITY = 25, ANY_INTEGER = 2, SEVERITY_ERROR = 3 };

struct tensor_type {
    int element;
    uint32_t rank; /* in the lowest seven bits of a byte */
    int32_t dims[8];
    uint32_t strides[8];
    char more[64]; /* in case a later version writes more */
};
static const int LITERT_TYPE[DTYPES] = {[FLOAT32] = 1, [INT32] = 2, [INT64] = 4};

static struct {
    Status (*create_environment)(int count, const struct env_option *options, void **environment);
    void *create_model; /* LiteRtCreateModelFromBuffer, of one kind or the other */
    Status (*count_signatures)(void *model, size_t *count);
    Status (*signature)(void *model, size_t index, void **signature);
    Status (*signature_key)(void *signature, const char **key);
    Status (*count_inputs)(void *signature, size_t *count);
    Status (*count_outputs)(void *signature, size_t *count);
    Status (*input_name)(void *signature, size_t index, const char **name);
    Status (*output_name)(void *signature, size_t index, const char **name);
    Status (*input_tensor)(void *signature, size_t index, void **tensor);
    Status (*output_tensor)(void *signature, size_t index, void **tensor);
    Status (*tensor_type)(void *tensor, struct tensor_type *type);
    Status (*create_options)(void **options);
    Status (*set_accelerators)(void *options, int accelerators);
    Status (*create_opaque)(const char *identifier, void *payload, void (*destroy)(void *), void **opaque);
    Status (*add_opaque)(void *options, void *opaque);
    Status (*compile)(void *environment, void *model, void *options, void **compiled);
    Status (*input_needs)(void *compiled, size_t signature, size_t index, void **needs);
    Status (*output_needs)(void *compiled, size_t signature, size_t index, void **needs);
    Status (*create_buffer)(void *environment, const struct tensor_type *type, void *needs, void **buffer);
    Status (*lock)(void *buffer, void **address, int mode);
    Status (*unlock)(void *buffer);
    Status (*run)(void *compiled, size_t signature, size_t inputs, void **in, size_t outputs, void **out);
} api;

static const struct {
    const char *name;
    void **at;
} FUNCTIONS[] = {
    {"LiteRtCreateEnvironment", (void **)&api.create_environment},
    {"LiteRtCreateModelFromBuffer", &api.create_model},
    {"LiteRtGetNumModelSignatures", (void **)&api.count_signatures},
    {"LiteRtGetModelSignature", (void **)&api.signature},
    {"LiteRtGetSignatureKey", (void **)&api.signature_key},
    {"LiteRtGetNumSignatureInputs", (void **)&api.count_inputs},
    {"LiteRtGetNumSignatureOutputs", (void **)&api.count_outputs},
    {"LiteRtGetSignatureInputName", (void **)&api.input_name},
    {"LiteRtGetSignatureOutputName", (void **)&api.output_name},
    {"LiteRtGetSignatureInputTensorByIndex", (void **)&api.input_tensor},
    {"LiteRtGetSignatureOutputTensorByIndex", (void **)&api.output_tensor},
    {"LiteRtGetRankedTensorType", (void **)&api.tensor_type},
    {"LiteRtCreateOptions", (void **)&api.create_options},
    {"LiteRtSetOptionsHardwareAccelerators", (void **)&api.set_accelerators},
    {"LiteRtCreateOpaqueOptions", (void **)&api.create_opaque},
    {"LiteRtAddOpaqueOptions", (void **)&api.add_opaque},
    {"LiteRtCreateCompiledModel", (void **)&api.compile},
    {"LiteRtGetCompiledModelInputBufferRequirements", (void **)&api.input_needs},
    {"LiteRtGetCompiledModelOutputBufferRequirements", (void **)&api.output_needs},
    {"LiteRtCreateManagedTensorBufferFromRequirements", (void **)&api.create_buffer},
    {"LiteRtLockTensorBuffer", (void **)&api.lock},
    {"LiteRtUnlockTensorBuffer", (void **)&api.unlock},
    {"LiteRtRunCompiledModel", (void **)&api.run},
};

static void *compiled;
static size_t signature_index;
static struct tensors in, out; /* name, type and shape of each; data unused */
static void *in_buffers[MAX_TENSORS], *out_buffers[MAX_TENSORS];
static void *locked[MAX_TENSORS];

static void check(const char *phase, const char *what, Status status) {
    if (status) fail(phase, "LiteRT: %s: status %d", what, status);
}

/* Whether models are made in an environment: (environment, bytes, size, model) against (bytes, size, model).
 * Called with (bytes, 64, place, NULL): the one kind finds its last argument missing before it looks at the others,
 * the other finds that the bytes are no model. */
static int takes_environment(void) {
    static const char junk[64] = "no model";
    void *place = NULL;
    Status status = ((Status(*)(const void *, size_t, void **, void *))api.create_model)(junk, 64, &place, NULL);
    if (!status) fail("library", "this LiteRT takes anything for a model: a version that this runner does not know");
    return status == INVALID_ARGUMENT;
}

static void litert_open(void *library) {
    for (size_t i = 0; i < sizeof FUNCTIONS / sizeof *FUNCTIONS; i++)
        *FUNCTIONS[i].at = symbol(library, FUNCTIONS[i].name);
}

static struct tensor *describe(struct tensors *all, size_t i, const char *name, void *tensor, struct tensor_type *type) {
    struct tensor *found = &all->at[i];
    int known = 0;
    snprintf(found->name, sizeof found->name, "%s", name);
    check("model", name, api.tensor_type(tensor, type));
    for (int d = 0; d < DTYPES; d++)
        if (LITERT_TYPE[d] == type->element) found->dtype = (enum dtype)d, known = 1;
    found->rank = type->rank & 0x7f;
    if (!known || found->rank > MAX_RANK)
        fail("model", "%s has element type %d and rank %d, which this runner does not serve", name, type->element,
             found->rank);
    found->bytes = DTYPE_SIZE[found->dtype];
    for (int d = 0; d < found->rank; d++) {
        found->dims[d] = type->dims[d];
        if (type->dims[d] < 0) fail("model", "%s has a dynamic shape, which this runner does not serve", name);
        found->bytes *= (size_t)type->dims[d];
    }
    return found;
}

static void *find_signature(void *model, const char *wanted) {
    char names[1000] = "";
    size_t count;
    void *signature;
    const char *key;
    check("model", "signatures", api.count_signatures(model, &count));
    for (size_t i = 0; i < count; i++) {
        check("model", "signatures", api.signature(model, i, &signature));
        check("model", "signatures", api.signature_key(signature, &key));
        signature_index = i;
        if (!wanted || !strcmp(key, wanted)) return signature;
        size_t used = strlen(names);
        snprintf(names + used, sizeof names - used, "%s%s", used ? ", " : "", key);
    }
    fail("signature", "the model has no signature \"%s\"; it has: %s", wanted ? wanted : "", *names ? names : "none");
}

static void keep(void *payload) { (void)payload; }

static void litert_load(const char *path, const char *wanted, int threads) {
    static const struct env_option quiet_cpu[] = {
        {TAG_ACCELERATORS, {ANY_INTEGER, {ACCELERATOR_CPU}}}, /* or it opens libraries for GPUs and NPUs */
        {TAG_LOG_SEVERITY, {ANY_INTEGER, {SEVERITY_ERROR}}},
    };
    static char payload[64];
    void *environment, *model = NULL, *options, *opaque;
    struct tensor_type type;

    check("model", "environment", api.create_environment(2, quiet_cpu, &environment));
    int file = open(path, O_RDONLY | O_CLOEXEC);
    struct stat facts;
    if (file < 0 || fstat(file, &facts)) fail("model", "%s: %m", path);
    /* Mapped by us, not by name: LiteRT 2.2 crashes on a broken file, and refuses broken bytes. */
    void *bytes = facts.st_size ? mmap(NULL, (size_t)facts.st_size, PROT_READ, MAP_SHARED, file, 0) : MAP_FAILED;
    if (bytes == MAP_FAILED) fail("model", "%s: cannot be mapped: %m", path);
    close(file);
    size_t size = (size_t)facts.st_size;
    Status status = takes_environment()
                        ? ((Status(*)(void *, const void *, size_t, void **))api.create_model)(environment, bytes, size, &model)
                        : ((Status(*)(const void *, size_t, void **))api.create_model)(bytes, size, &model);
    if (status || !model) fail("model", "%s: LiteRT finds it broken or no TFLite model (status %d)", path, status);
    void *signature = find_signature(model, wanted);

    check("model", "options", api.create_options(&options));
    check("model", "options", api.set_accelerators(options, ACCELERATOR_CPU));
    snprintf(payload, sizeof payload, "num_threads = %d\n", threads); /* TOML */
    check("model", "options", api.create_opaque("xnnpack", payload, keep, &opaque));
    check("model", "options", api.add_opaque(options, opaque));
    check("model", path, api.compile(environment, model, options, &compiled));

    size_t inputs, outputs;
    check("model", "inputs", api.count_inputs(signature, &inputs));
    check("model", "outputs", api.count_outputs(signature, &outputs));
    if (inputs > MAX_TENSORS || outputs > MAX_TENSORS)
        fail("model", "has %zu inputs and %zu outputs, at most %d are served", inputs, outputs, MAX_TENSORS);
    in.count = (int)inputs, out.count = (int)outputs;
    for (size_t i = 0; i < inputs + outputs; i++) {
        int is_input = i < inputs;
        size_t at = is_input ? i : i - inputs;
        const char *name;
        void *tensor, *needs;
        check("model", "names", (is_input ? api.input_name : api.output_name)(signature, at, &name));
        check("model", name, (is_input ? api.input_tensor : api.output_tensor)(signature, at, &tensor));
        describe(is_input ? &in : &out, at, name, tensor, &type);
        check("model", name, (is_input ? api.input_needs : api.output_needs)(compiled, signature_index, at, &needs));
        check("model", name,
              api.create_buffer(environment, &type, needs, is_input ? &in_buffers[at] : &out_buffers[at]));
    }
}

static void unlock_outputs(void) {
    for (int i = 0; i < out.count; i++)
        if (locked[i]) check("outputs", out.at[i].name, api.unlock(out_buffers[i])), locked[i] = NULL;
}

static void litert_feed(const struct tensors *example) {
    unlock_outputs();
    for (int i = 0; i < in.count; i++) {
        const struct tensor *wanted = &in.at[i], *given = NULL;
        void *address;
        for (int j = 0; j < example->count; j++)
            if (!strcmp(example->at[j].name, wanted->name)) given = &example->at[j];
        if (!given) fail("inputs", "the model's input %s is not in the inputs file", wanted->name);
        if (given->dtype != wanted->dtype || given->rank != wanted->rank ||
            memcmp(given->dims, wanted->dims, sizeof *given->dims * (size_t)given->rank))
            fail("inputs", "%s: the model takes %s, the inputs file has %s", wanted->name,
                 shape_of(wanted->dtype, wanted->rank, wanted->dims), shape_of(given->dtype, given->rank, given->dims));
        check("inputs", wanted->name, api.lock(in_buffers[i], &address, FOR_WRITING));
        memcpy(address, given->data, given->bytes);
        check("inputs", wanted->name, api.unlock(in_buffers[i]));
    }
}

static void litert_run(void) {
    check("run", "run",
          api.run(compiled, signature_index, (size_t)in.count, in_buffers, (size_t)out.count, out_buffers));
}

static void litert_fetch(struct tensors *found) {
    found->count = out.count;
    for (int i = 0; i < out.count; i++) {
        check("outputs", out.at[i].name, api.lock(out_buffers[i], &locked[i], FOR_READING));
        found->at[i] = out.at[i];
        found->at[i].data = locked[i];
    }
}

/* The library does not tell its version. The build wrote down the size and CRC of the ones that it put into the kit. */
static const char *litert_version(const char *path) {
    static const struct {
        unsigned long long bytes;
        uint32_t crc;
        const char *version;
    } known[] = {
#include "libraries.h"
        {0, 0, NULL}};
    static unsigned char chunk[65536];
    unsigned long long bytes = 0;
    uint32_t table[256], crc = ~0u;
    for (uint32_t i = 0; i < 256; i++) {
        table[i] = i;
        for (int bit = 0; bit < 8; bit++) table[i] = table[i] & 1 ? table[i] >> 1 ^ 0xedb88320u : table[i] >> 1;
    }
    int file = open(path, O_RDONLY | O_CLOEXEC);
    for (ssize_t got; file >= 0 && (got = read(file, chunk, sizeof chunk)) > 0; bytes += (unsigned long long)got)
        for (ssize_t i = 0; i < got; i++) crc = crc >> 8 ^ table[(crc ^ chunk[i]) & 0xff];
    for (int i = 0; known[i].version; i++)
        if (known[i].bytes == bytes && known[i].crc == ~crc) return known[i].version;
    return "unknown";
}

const struct runtime LITERT = {"litert", litert_open, litert_version, litert_load, litert_feed, litert_run, litert_fetch};
