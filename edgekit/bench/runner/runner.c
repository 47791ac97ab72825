/* edgekit's runner: one model, one process, one JSON document on stdout. See __init__.py for what it does and why.
 *
 * It is small so that the process's memory is what an app would pay: C11, libc and libdl only; the runtime's library
 * is opened by path. Exit codes: 0 good, 1 an error that the document names, 2 wrong options, 124 out of time. */
#define _GNU_SOURCE
#include "runner.h"

#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <sched.h>
#include <signal.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>

#define MOST_SAMPLES 1000000
#define MOST_BYTES ((size_t)1 << 30) /* of one tensor */

const char *const DTYPE_NAME[DTYPES] = {"float32", "int32", "int64"};
const size_t DTYPE_SIZE[DTYPES] = {4, 4, 8};

enum phase { START, LIBRARY, LOADED, FIRST_RUN, WARM, END, PHASES };
static const char *const PHASE_NAME[PHASES] = {"start", "library", "loaded", "first_run", "warm", "end"};

static struct {
    const char *format, *library, *model, *inputs, *outputs, *signature, *cpus;
    long threads;
    double warmup_s, repeat_s, deadline_s;
    long warmup_n, repeat_n;
} options = {.threads = 1};

static struct {
    long long hwm, rss, anon, file, shmem, pss, swap; /* bytes; -1 is not told */
} memory[PHASES];

static int document;                   /* the real stdout; what libraries print there goes to stderr */
static const char *doing = "start";    /* what a crash is reported as */

/* ---- errors ---- */

static void print_string(FILE *to, const char *text) {
    fputc('"', to);
    for (const unsigned char *c = (const unsigned char *)text; *c; c++) {
        if (*c == '"' || *c == '\\') fprintf(to, "\\%c", *c);
        else if (*c < 0x20 || *c >= 0x7f) fprintf(to, "\\u%04x", *c < 0x7f ? *c : '?');
        else fputc(*c, to);
    }
    fputc('"', to);
}

noreturn void fail(const char *phase, const char *message, ...) {
    char text[2000];
    va_list rest;
    va_start(rest, message);
    vsnprintf(text, sizeof text, message, rest);
    va_end(rest);
    FILE *to = fdopen(document, "w");
    if (to) {
        fprintf(to, "{\"edgekit_runner\": 1, \"error\": {\"phase\": \"%s\", \"message\": ", phase);
        print_string(to, text);
        fprintf(to, "}}\n");
        fflush(to);
    }
    fprintf(stderr, "edgekit-runner: %s: %s\n", phase, text);
    _exit(1);
}

noreturn static void refuse(const char *message, const char *what) {
    fprintf(stderr, "edgekit-runner: %s %s\n", message, what);
    exit(2);
}

static void say(int to, const char *text) {
    ssize_t written = write(to, text, strlen(text));
    (void)written;
}

static void on_deadline(int number) {
    (void)number;
    say(STDERR_FILENO, "edgekit-runner: out of time: the deadline has passed\n");
    _exit(124);
}

static void on_crash(int number) {
    const char *name = number == SIGSEGV   ? "SIGSEGV"
                       : number == SIGBUS  ? "SIGBUS"
                       : number == SIGILL  ? "SIGILL"
                       : number == SIGFPE  ? "SIGFPE"
                                           : "SIGABRT";
    say(document, "{\"edgekit_runner\": 1, \"error\": {\"phase\": \"");
    say(document, doing);
    say(document, "\", \"message\": \"the runtime's library crashed with ");
    say(document, name);
    say(document, "\"}}\n");
    _exit(1);
}

void *symbol(void *library, const char *name) {
    void *found = dlsym(library, name);
    if (!found) fail("library", "%s: has no %s; is it the right library, in a version that this runner knows?",
                     options.library, name);
    return found;
}

const char *shape_of(enum dtype dtype, int rank, const int64_t *dims) {
    static char texts[2][128];
    static int turn;
    char *text = texts[turn ^= 1];
    int used = snprintf(text, sizeof texts[0], "%s[", DTYPE_NAME[dtype]);
    for (int i = 0; i < rank && used < 110; i++)
        used += snprintf(text + used, sizeof texts[0] - (size_t)used, "%s%" PRId64, i ? ", " : "", dims[i]);
    snprintf(text + used, sizeof texts[0] - (size_t)used, "]");
    return text;
}

/* ---- options ---- */

static double number(const char *option, const char *text, double least, double most) {
    char *end;
    errno = 0;
    double value = strtod(text, &end);
    if (errno || end == text || *end || !(value >= least && value <= most)) refuse("not a usable number for", option);
    return value;
}

static void read_options(int count, char **words) {
    if (count % 2 == 0) refuse("options come in pairs of a name and a value;", "a word is missing");
    for (int i = 1; i < count; i += 2) {
        const char *name = words[i], *value = words[i + 1];
        if (!strcmp(name, "--format")) options.format = value;
        else if (!strcmp(name, "--library")) options.library = value;
        else if (!strcmp(name, "--model")) options.model = value;
        else if (!strcmp(name, "--inputs")) options.inputs = value;
        else if (!strcmp(name, "--outputs")) options.outputs = value;
        else if (!strcmp(name, "--signature")) options.signature = value;
        else if (!strcmp(name, "--cpus")) options.cpus = value;
        else if (!strcmp(name, "--threads")) options.threads = (long)number(name, value, 1, 256);
        else if (!strcmp(name, "--warmup-s")) options.warmup_s = number(name, value, 0, 1e6);
        else if (!strcmp(name, "--warmup-n")) options.warmup_n = (long)number(name, value, 0, MOST_SAMPLES);
        else if (!strcmp(name, "--repeat-s")) options.repeat_s = number(name, value, 0, 1e6);
        else if (!strcmp(name, "--repeat-n")) options.repeat_n = (long)number(name, value, 0, MOST_SAMPLES);
        else if (!strcmp(name, "--deadline-s")) options.deadline_s = number(name, value, 1e-6, 1e6);
        else refuse("unknown option", name);
    }
    if (!options.format || (strcmp(options.format, "onnx") && strcmp(options.format, "tflite")))
        refuse("--format must be", "onnx or tflite");
    if (!options.library) refuse("missing option", "--library");
    if (!options.model) refuse("missing option", "--model");
    if (!options.inputs) refuse("missing option", "--inputs");
    if (!options.deadline_s) refuse("missing option", "--deadline-s");
}

static cpu_set_t cores;

static void keep_to_cpus(void) {
    CPU_ZERO(&cores);
    for (const char *at = options.cpus; *at;) {
        char *end;
        long cpu = strtol(at, &end, 10);
        if (end == at || cpu < 0 || cpu >= CPU_SETSIZE || (*end && (*end != ',' || !end[1])))
            refuse("not core numbers:", options.cpus);
        CPU_SET((int)cpu, &cores);
        at = *end ? end + 1 : end;
    }
    if (sched_setaffinity(0, sizeof cores, &cores)) fail("cpus", "cannot run on the cores %s: %m", options.cpus);
}

static void start_deadline(void) {
    struct itimerval timer = {.it_value = {(time_t)options.deadline_s,
                                           (suseconds_t)((options.deadline_s - (time_t)options.deadline_s) * 1e6) + 1}};
    if (timer.it_value.tv_usec > 999999) timer.it_value.tv_usec = 999999;
    signal(SIGALRM, on_deadline);
    setitimer(ITIMER_REAL, &timer, NULL);
}

static void catch_crashes(void) {
    static char stack[16384];
    sigaltstack(&(stack_t){.ss_sp = stack, .ss_size = sizeof stack}, NULL);
    struct sigaction action = {.sa_handler = on_crash, .sa_flags = SA_ONSTACK | SA_RESETHAND};
    const int numbers[] = {SIGSEGV, SIGBUS, SIGILL, SIGFPE, SIGABRT};
    for (size_t i = 0; i < sizeof numbers / sizeof *numbers; i++) sigaction(numbers[i], &action, NULL);
}

/* ---- clocks and memory ---- */

static int64_t now(clockid_t clock) {
    struct timespec time;
    clock_gettime(clock, &time);
    return (int64_t)time.tv_sec * 1000000000 + time.tv_nsec;
}

/* A line "Name:   123 kB" of a file in /proc, in bytes; -1 where there is none. */
static long long field(const char *text, const char *name) {
    const char *line = strstr(text, name);
    return line ? strtoll(line + strlen(name), NULL, 10) * 1024 : -1;
}

static const char *slurp(const char *path) {
    static char text[8192];
    size_t used = 0;
    int file = open(path, O_RDONLY | O_CLOEXEC);
    if (file < 0) return "";
    for (ssize_t got; used < sizeof text - 1 && (got = read(file, text + used, sizeof text - 1 - used)) > 0;)
        used += (size_t)got;
    close(file);
    text[used] = 0;
    return text;
}

/* From /proc and never from getrusage: ru_maxrss is inherited from the parent through fork and exec. */
static void read_memory(enum phase phase) {
    const char *rollup = slurp("/proc/self/smaps_rollup");
    memory[phase].pss = field(rollup, "\nPss:");
    const char *status = slurp("/proc/self/status");
    memory[phase].hwm = field(status, "\nVmHWM:");
    memory[phase].rss = field(status, "\nVmRSS:");
    memory[phase].anon = field(status, "\nRssAnon:");
    memory[phase].file = field(status, "\nRssFile:");
    memory[phase].shmem = field(status, "\nRssShmem:");
    memory[phase].swap = field(status, "\nVmSwap:");
    if (memory[phase].hwm < 0 || memory[phase].anon < 0)
        fail("start", "/proc/self/status tells no VmHWM or RssAnon: this needs Linux 4.5 or newer");
}

/* ---- the tensors files; the format is in __init__.py, at write_tensors ---- */

static FILE *inputs_file, *outputs_file;

static char *read_line(char *line, size_t size) {
    size_t length = fgets(line, (int)size, inputs_file) ? strlen(line) : 0;
    if (!length || line[length - 1] != '\n') fail("inputs", "%s: is cut off, or no tensors file", options.inputs);
    line[length - 1] = 0;
    return line;
}

static long long whole(const char **text, long long most) {
    char *end;
    errno = 0;
    long long value = strtoll(*text, &end, 10);
    if (errno || end == *text || value < 0 || value > most || (*end && *end != ' '))
        fail("inputs", "%s: a count should stand where it says \"%.40s\"", options.inputs, *text);
    *text = *end ? end + 1 : end;
    return value;
}

static long read_count(long long most) {
    char line[64];
    const char *text = read_line(line, sizeof line);
    return (long)whole(&text, most);
}

static void read_example(struct tensors *example) {
    char line[1000];
    example->count = (int)read_count(MAX_TENSORS);
    for (int i = 0; i < example->count; i++) {
        struct tensor *tensor = &example->at[i];
        const char *text = read_line(line, sizeof line);
        int dtype = 0;
        while (dtype < DTYPES && (strncmp(text, DTYPE_NAME[dtype], strlen(DTYPE_NAME[dtype])) ||
                                  text[strlen(DTYPE_NAME[dtype])] != ' '))
            dtype++;
        if (dtype == DTYPES) fail("inputs", "%s: has a tensor of an unknown type: %.60s", options.inputs, text);
        text += strlen(DTYPE_NAME[dtype]) + 1;
        tensor->dtype = (enum dtype)dtype;
        tensor->rank = (int)whole(&text, MAX_RANK);
        tensor->bytes = DTYPE_SIZE[dtype];
        for (int d = 0; d < tensor->rank; d++) {
            tensor->dims[d] = whole(&text, MOST_BYTES);
            if (tensor->dims[d] && tensor->bytes > MOST_BYTES / (size_t)tensor->dims[d])
                fail("inputs", "%s: a tensor of over a gigabyte", options.inputs);
            tensor->bytes *= (size_t)tensor->dims[d];
        }
        if (!*text || strlen(text) >= MAX_NAME) fail("inputs", "%s: a tensor without a usable name", options.inputs);
        strcpy(tensor->name, text);
        if (tensor->bytes + 1 > tensor->room) {
            free(tensor->data);
            tensor->data = malloc(tensor->bytes + 1);
            if (!tensor->data) fail("memory", "no %zu bytes for %s", tensor->bytes, tensor->name);
            tensor->room = tensor->bytes + 1;
        }
        if (fread(tensor->data, 1, tensor->bytes + 1, inputs_file) != tensor->bytes + 1 ||
            ((char *)tensor->data)[tensor->bytes] != '\n')
            fail("inputs", "%s: ends within %s", options.inputs, tensor->name);
    }
}

static void write_example(const struct tensors *example) {
    fprintf(outputs_file, "%d\n", example->count);
    for (int i = 0; i < example->count; i++) {
        const struct tensor *tensor = &example->at[i];
        fprintf(outputs_file, "%s %d", DTYPE_NAME[tensor->dtype], tensor->rank);
        for (int d = 0; d < tensor->rank; d++) fprintf(outputs_file, " %" PRId64, tensor->dims[d]);
        fprintf(outputs_file, " %s\n", tensor->name);
        fwrite(tensor->data, 1, tensor->bytes, outputs_file);
        fputc('\n', outputs_file);
    }
    if (ferror(outputs_file)) fail("outputs", "%s: %m", options.outputs);
}

/* ---- warming up and measuring ---- */

struct samples {
    long count;
    int64_t *wall, *cpu; /* ns */
};

static struct samples room_for_samples(long least, double seconds) {
    size_t room = (size_t)(seconds ? MOST_SAMPLES : least) * sizeof(int64_t); /* the system gives what is touched */
    struct samples samples = {0, malloc(room), malloc(room)};
    if (!samples.wall || !samples.cpu) fail("memory", "no %zu bytes for samples", room);
    memset(samples.wall, 0, (size_t)least * sizeof *samples.wall); /* touched now, not while measuring */
    memset(samples.cpu, 0, (size_t)least * sizeof *samples.cpu);
    return samples;
}

static void repeat(const struct runtime *runtime, struct samples *samples, long least, double seconds) {
    int64_t end = now(CLOCK_MONOTONIC) + (int64_t)(seconds * 1e9), stop;
    do {
        int64_t cpu = now(CLOCK_PROCESS_CPUTIME_ID), start = now(CLOCK_MONOTONIC);
        runtime->run();
        stop = now(CLOCK_MONOTONIC);
        samples->cpu[samples->count] = now(CLOCK_PROCESS_CPUTIME_ID) - cpu;
        samples->wall[samples->count++] = stop - start;
    } while ((samples->count < least || stop < end) && samples->count < MOST_SAMPLES);
}

/* ---- the document ---- */

static void print_times(FILE *to, const char *name, const int64_t *ns, long count) {
    fprintf(to, ", \"%s\": [", name);
    for (long i = 0; i < count; i++) fprintf(to, "%s%" PRId64, i ? ", " : "", ns[i]);
    fputc(']', to);
}

static void print_bytes(FILE *to, const char *name, long long bytes) {
    if (bytes < 0) fprintf(to, ", \"%s\": null", name);
    else fprintf(to, ", \"%s\": %lld", name, bytes);
}

static void print_phases(FILE *to) {
    fprintf(to, ", \"phases\": [");
    for (int i = 0; i < PHASES; i++) {
        fprintf(to, "%s{\"name\": \"%s\"", i ? ", " : "", PHASE_NAME[i]);
        print_bytes(to, "hwm_bytes", memory[i].hwm);
        print_bytes(to, "rss_bytes", memory[i].rss);
        print_bytes(to, "anon_bytes", memory[i].anon);
        print_bytes(to, "file_bytes", memory[i].file);
        print_bytes(to, "shmem_bytes", memory[i].shmem);
        print_bytes(to, "pss_bytes", memory[i].pss);
        print_bytes(to, "swap_bytes", memory[i].swap);
        fputc('}', to);
    }
    fputc(']', to);
}

/* Everything that was measured, in the order in which it was. */
static struct {
    int64_t open_ns, load_ns, first_run_ns;
    long examples;
    struct samples warmup, samples;
    int64_t began, ended; /* ns since 1970 */
    struct rusage before, after;
} seen;

static void print_document(FILE *to, const struct runtime *runtime) {
    fprintf(to, "{\"edgekit_runner\": 1, \"runner\": \"native\", \"format\": \"%s\", \"runtime\": \"%s\", \"library_version\": ",
            options.format, runtime->name);
    print_string(to, runtime->version(options.library));
    fprintf(to, ", \"threads\": %ld, \"cpus\": %s", options.threads, options.cpus ? "[" : "null");
    for (int cpu = 0, written = 0; options.cpus && cpu < CPU_SETSIZE; cpu++)
        if (CPU_ISSET(cpu, &cores)) fprintf(to, "%s%d", written++ ? ", " : "", cpu);
    if (options.cpus) fputc(']', to);
    fprintf(to, ", \"open_ns\": %" PRId64 ", \"load_ns\": %" PRId64 ", \"first_run_ns\": %" PRId64, seen.open_ns,
            seen.load_ns, seen.first_run_ns);
    print_times(to, "warmup_ns", seen.warmup.wall, seen.warmup.count);
    print_times(to, "samples_ns", seen.samples.wall, seen.samples.count);
    print_times(to, "cpu_ns", seen.samples.cpu, seen.samples.count);
    if (seen.samples.count) fprintf(to, ", \"began_ns\": %" PRId64 ", \"ended_ns\": %" PRId64, seen.began, seen.ended);
    else fprintf(to, ", \"began_ns\": null, \"ended_ns\": null");
    const struct rusage *before = &seen.before, *after = &seen.after;
    fprintf(to, ", \"voluntary_switches\": %ld, \"involuntary_switches\": %ld, \"minor_faults\": %ld, \"major_faults\": %ld",
            after->ru_nvcsw - before->ru_nvcsw, after->ru_nivcsw - before->ru_nivcsw,
            after->ru_minflt - before->ru_minflt, after->ru_majflt - before->ru_majflt);
    print_phases(to);
    fprintf(to, ", \"examples\": %ld}\n", seen.examples);
}

/* ---- in order ---- */

static void open_and_load(const struct runtime *runtime) {
    doing = "library";
    int64_t begin = now(CLOCK_MONOTONIC);
    void *library = dlopen(options.library, RTLD_NOW | RTLD_LOCAL);
    if (!library) fail("library", "%s", dlerror());
    runtime->open(library);
    seen.open_ns = now(CLOCK_MONOTONIC) - begin;
    read_memory(LIBRARY);

    doing = "model";
    begin = now(CLOCK_MONOTONIC);
    runtime->load(options.model, options.signature, (int)options.threads);
    seen.load_ns = now(CLOCK_MONOTONIC) - begin;
    read_memory(LOADED);
}

/* Runs each example once and writes its outputs; the first one is left fed. */
static void run_examples(const struct runtime *runtime) {
    static struct tensors example, found;
    char line[64];
    doing = "inputs";
    inputs_file = fopen(options.inputs, "rbe");
    if (!inputs_file) fail("inputs", "%s: %m", options.inputs);
    if (strcmp(read_line(line, sizeof line), "edgekit-tensors 1")) fail("inputs", "%s: is no tensors file", options.inputs);
    seen.examples = read_count(100000000);
    if (!seen.examples) fail("inputs", "%s: has no examples", options.inputs);
    long first = ftell(inputs_file);
    if (options.outputs) {
        outputs_file = fopen(options.outputs, "wbe");
        if (!outputs_file || fprintf(outputs_file, "edgekit-tensors 1\n%ld\n", seen.examples) < 0)
            fail("outputs", "%s: %m", options.outputs);
    }
    doing = "run";
    for (long i = 0; i < seen.examples; i++) {
        read_example(&example);
        runtime->feed(&example);
        int64_t begin = now(CLOCK_MONOTONIC);
        runtime->run();
        if (!i) seen.first_run_ns = now(CLOCK_MONOTONIC) - begin;
        if (!i) read_memory(FIRST_RUN);
        runtime->fetch(&found);
        if (outputs_file) write_example(&found);
    }
    if (fgetc(inputs_file) != EOF) fail("inputs", "%s: goes on after its last example", options.inputs);
    if (outputs_file && fclose(outputs_file)) fail("outputs", "%s: %m", options.outputs);
    if (seen.examples > 1) {
        if (fseek(inputs_file, first, SEEK_SET)) fail("inputs", "%s: %m", options.inputs);
        read_example(&example);
    }
    runtime->feed(&example);
}

static void warm_up_and_measure(const struct runtime *runtime) {
    if (options.warmup_n || options.warmup_s) {
        seen.warmup = room_for_samples(options.warmup_n, options.warmup_s);
        repeat(runtime, &seen.warmup, options.warmup_n, options.warmup_s);
    }
    read_memory(WARM);
    if (options.repeat_n || options.repeat_s) {
        seen.samples = room_for_samples(options.repeat_n, options.repeat_s);
        getrusage(RUSAGE_SELF, &seen.before);
        seen.began = now(CLOCK_REALTIME);
        repeat(runtime, &seen.samples, options.repeat_n, options.repeat_s);
        seen.ended = now(CLOCK_REALTIME);
        getrusage(RUSAGE_SELF, &seen.after);
    }
    doing = "end";
    read_memory(END);
}

int main(int count, char **words) {
    document = fcntl(STDOUT_FILENO, F_DUPFD_CLOEXEC, 3);
    if (document < 0 || dup2(STDERR_FILENO, STDOUT_FILENO) < 0) refuse("needs both", "stdout and stderr");
    read_options(count, words);
    start_deadline();
    catch_crashes();
    if (options.cpus) keep_to_cpus();
    const struct runtime *runtime = strcmp(options.format, "onnx") ? &LITERT : &ORT;
    read_memory(START);
    open_and_load(runtime);
    run_examples(runtime);
    warm_up_and_measure(runtime);
    FILE *to = fdopen(document, "w");
    if (!to) fail("outputs", "stdout: %m");
    print_document(to, runtime);
    /* the libraries' own tidying up at exit is of no use to anybody, and some of it crashes */
    _exit(fflush(to) ? 1 : 0);
}
