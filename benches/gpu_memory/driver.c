// A CUDA driver, with the few functions of cuBLAS, that computes nothing and counts the memory that is taken from
// it. Whatever is read back is zero. Names and types are those of CUDA's driver API. See run.sh.

#include <pthread.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { SUCCESS = 0, OUT_OF_MEMORY = 2 };

// The memory of the card, in bytes.
static const uint64_t capacity = 141000000000;

// Where a buffer begins, and how large it is.
static struct {
    uint64_t start, size;
} buffers[1 << 20];
static size_t num_buffers;
static uint64_t taken, most_taken;
static uint64_t next_start = 1ull << 40, next_handle = 1 << 12;
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;

static void report(void) { fprintf(stderr, "peak %.2f GB\n", most_taken / 1e9); }

static int new_handle(void *handle) {
    pthread_mutex_lock(&lock);
    *(uint64_t *)handle = next_handle++;
    pthread_mutex_unlock(&lock);
    return SUCCESS;
}

// The device: an H100's multiprocessors.

int cuInit(unsigned flags) { return atexit(report); }
int cuDriverGetVersion(int *version) { return *version = 13000, SUCCESS; }
int cuDeviceGetCount(int *count) { return *count = 1, SUCCESS; }
int cuDeviceGet(int *device, int ordinal) { return *device = ordinal, SUCCESS; }
int cuDeviceTotalMem_v2(uint64_t *bytes, int device) { return *bytes = capacity, SUCCESS; }
int cuDeviceGetName(char *name, int len, int device) { return snprintf(name, len, "none"), SUCCESS; }

int cuDeviceGetPCIBusId(char *id, int len, int device) {
    return snprintf(id, len, "0000:00:00.0"), SUCCESS;
}

int cuDeviceGetAttribute(int *value, int attribute, int device) {
    static const int values[][2] = {
        {1, 1024},       // threads of a block
        {2, 1024},       // in x
        {3, 1024},       // in y
        {4, 64},         // in z
        {5, 2147483647}, // blocks in x
        {6, 65535},      // in y
        {7, 65535},      // in z
        {8, 49152},      // shared memory of a block
        {10, 32},        // threads of a warp
        {12, 65536},     // registers of a block
        {16, 132},       // multiprocessors
        {18, 0},         // whether the GPU is part of the processor
        {38, 52428800},  // second cache
        {39, 2048},      // threads of a multiprocessor
        {75, 9},         // compute capability
        {76, 0},
        {81, 233472}, // shared memory of a multiprocessor
        {82, 65536},  // its registers
        {97, 232448}, // shared memory of a block that asks for more
        {106, 32},    // blocks of a multiprocessor
    };
    *value = 1;
    for (size_t i = 0; i < sizeof values / sizeof *values; i++)
        if (values[i][0] == attribute)
            *value = values[i][1];
    return SUCCESS;
}

// Memory.

int cuMemGetInfo_v2(uint64_t *free, uint64_t *total) {
    return *free = capacity - taken, *total = capacity, SUCCESS;
}

int cuMemAlloc_v2(uint64_t *start, uint64_t size) {
    pthread_mutex_lock(&lock);
    int fits = taken + size <= capacity;
    if (fits) {
        *start = next_start;
        next_start += (size + 511) / 512 * 512;
        buffers[num_buffers].start = *start;
        buffers[num_buffers++].size = size;
        taken += size;
        most_taken = taken > most_taken ? taken : most_taken;
    }
    pthread_mutex_unlock(&lock);
    return fits ? SUCCESS : OUT_OF_MEMORY;
}

int cuMemFree_v2(uint64_t start) {
    pthread_mutex_lock(&lock);
    for (size_t i = 0; i < num_buffers; i++)
        if (buffers[i].start == start) {
            taken -= buffers[i].size;
            buffers[i] = buffers[--num_buffers];
            break;
        }
    pthread_mutex_unlock(&lock);
    return SUCCESS;
}

int cuMemAllocAsync(uint64_t *start, uint64_t size, void *stream) { return cuMemAlloc_v2(start, size); }
int cuMemFreeAsync(uint64_t start, void *stream) { return cuMemFree_v2(start); }
int cuMemAllocHost_v2(void **start, uint64_t size) { return *start = malloc(size), SUCCESS; }
int cuMemFreeHost(void *start) { return free(start), SUCCESS; }

int cuMemcpyHtoDAsync_v2(uint64_t to, const void *from, uint64_t size, void *stream) { return SUCCESS; }
int cuMemcpyDtoDAsync_v2(uint64_t to, uint64_t from, uint64_t size, void *stream) { return SUCCESS; }

int cuMemcpyDtoHAsync_v2(void *to, uint64_t from, uint64_t size, void *stream) {
    return memset(to, 0, size), SUCCESS;
}

// Contexts, streams and events.

int cuDevicePrimaryCtxRetain(void **context, int device) { return new_handle(context); }
int cuCtxGetCurrent(void **context) { return new_handle(context); }
int cuCtxSetCurrent(void *context) { return SUCCESS; }
int cuCtxRecordEvent(void *context, void *event) { return SUCCESS; }
int cuCtxWaitEvent(void *context, void *event) { return SUCCESS; }
int cuStreamCreate(void **stream, unsigned flags) { return new_handle(stream); }
int cuStreamSynchronize(void *stream) { return SUCCESS; }
int cuStreamWaitEvent(void *stream, void *event, unsigned flags) { return SUCCESS; }
int cuEventCreate(void **event, unsigned flags) { return new_handle(event); }
int cuEventDestroy_v2(void *event) { return SUCCESS; }
int cuEventRecord(void *event, void *stream) { return SUCCESS; }
int cuEventQuery(void *event) { return SUCCESS; }
int cuEventSynchronize(void *event) { return SUCCESS; }
int cuEventElapsedTime_v2(float *ms, void *start, void *end) { return *ms = 1, SUCCESS; }

// Kernels.

int cuModuleLoadData(void **module, const void *image) { return new_handle(module); }
int cuModuleGetFunction(void **function, void *module, const char *name) { return new_handle(function); }
int cuFuncSetAttribute(void *function, int attribute, int value) { return SUCCESS; }
int cuLaunchKernel() { return SUCCESS; }

// cuBLAS.

int cublasCreate_v2(void **handle) { return new_handle(handle); }
int cublasSetStream_v2(void *handle, void *stream) { return SUCCESS; }
int cublasSetMathMode(void *handle, int mode) { return SUCCESS; }
int cublasGemmStridedBatchedEx() { return SUCCESS; }
