/* A libcuda.so.1 without a GPU behind it: what Triton's launcher needs of the CUDA driver (Triton 3.6 to 3.9).
 *
 * It answers as an H200 does, refuses what an H200 would refuse, and appends every call that configures or launches a
 * kernel to the file named by RNN_TRITON_STUB_LOG, one JSON object a line.  Kernels do not run.  What it does not know
 * is an error: a query that is not listed here fails.
 *
 * Stricter than a GPU in one point: a cooperative launch fits if it has one CTA per SM at most, which is what the plans
 * promise, however many CTAs an SM could hold.
 */
#include "cuda.h"

#include <elf.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define EXPORT __attribute__((visibility("default")))

enum {
  SMS = 132,
  SHARED_PER_BLOCK = 48 * 1024,
  SHARED_PER_BLOCK_OPTIN = 227 * 1024,
  SHARED_PER_SM = 228 * 1024,
  REGISTERS_PER_BLOCK = 65536,
  THREADS_PER_BLOCK = 1024,
  WARP = 32,
};

struct CUmod_st {
  char *image; /* a copy of the cubin */
};

struct CUfunc_st {
  char name[512];
  int registers; /* of a thread */
  int dynamic_shared; /* bytes it may ask for */
  int cluster_of_16;
  int parameters;
  uint16_t parameter_bytes[256];
};

/* ------------------------------------------------------------------------------------------------ log */

static FILE *log_file(void) {
  static FILE *file;
  if (!file) {
    const char *path = getenv("RNN_TRITON_STUB_LOG");
    file = path ? fopen(path, "a") : NULL;
    if (!file) {
      fprintf(stderr, "stub libcuda: RNN_TRITON_STUB_LOG does not name a file that can be written\n");
      abort();
    }
  }
  return file;
}

static void end_of_line(FILE *file) {
  fputs("}\n", file);
  fflush(file);
}

/* ------------------------------------------------------------------------------------------------ cubins */

static const Elf64_Shdr *section(const char *image, const char *prefix, const char *kernel) {
  const Elf64_Ehdr *header = (const Elf64_Ehdr *)image;
  const Elf64_Shdr *sections = (const Elf64_Shdr *)(image + header->e_shoff);
  const char *names = image + sections[header->e_shstrndx].sh_offset;
  size_t length = strlen(prefix);
  for (int i = 0; i < header->e_shnum; i++) {
    const char *name = names + sections[i].sh_name;
    if (!strncmp(name, prefix, length) && !strcmp(name + length, kernel))
      return &sections[i];
  }
  return NULL;
}

/* Attributes of a kernel are lists in .nv.info sections: {format, attribute, size or value}, and in format 4 `size` bytes
 * more.  Returns the bytes of the next entry of `attribute` at or behind *p, and moves *p behind it; NULL at the end. */
static const unsigned char *next(const unsigned char **p, const unsigned char *end, int attribute) {
  while (*p + 4 <= end) {
    const unsigned char *entry = *p;
    uint16_t size;
    memcpy(&size, entry + 2, 2);
    *p += 4 + (entry[0] == 4 ? size : 0);
    if (entry[0] == 4 && entry[1] == attribute)
      return entry + 4;
  }
  return NULL;
}

/* Attribute 0x17 of a kernel's own section is one parameter: {index, ordinal, offset, its bytes above bit 18}. */
static void read_parameters(CUfunction f, const char *image, const Elf64_Shdr *info) {
  const unsigned char *p = (const unsigned char *)image + info->sh_offset, *end = p + info->sh_size, *entry;
  while ((entry = next(&p, end, 0x17))) {
    uint16_t ordinal;
    uint32_t bits;
    memcpy(&ordinal, entry + 4, 2);
    memcpy(&bits, entry + 8, 4);
    if (ordinal < sizeof f->parameter_bytes / sizeof *f->parameter_bytes) {
      f->parameter_bytes[ordinal] = bits >> 18;
      if (f->parameters <= ordinal)
        f->parameters = ordinal + 1;
    }
  }
}

/* Attribute 0x2f of the section of all kernels is {symbol, registers}. */
static void read_registers(CUfunction f, const char *image) {
  const Elf64_Shdr *info = section(image, ".nv.info", ""), *symbols = section(image, ".symtab", "");
  const Elf64_Shdr *strings = section(image, ".strtab", "");
  const unsigned char *p = (const unsigned char *)image + info->sh_offset, *end = p + info->sh_size, *entry;
  while ((entry = next(&p, end, 0x2f))) {
    uint32_t symbol, registers;
    memcpy(&symbol, entry, 4);
    memcpy(&registers, entry + 4, 4);
    const Elf64_Sym *found = (const Elf64_Sym *)(image + symbols->sh_offset) + symbol;
    if (!strcmp(image + strings->sh_offset + found->st_name, f->name))
      f->registers = registers;
  }
}

/* ------------------------------------------------------------------------------------------------ device, context */

EXPORT CUresult cuInit(unsigned flags) { return CUDA_SUCCESS; }

EXPORT CUresult cuDriverGetVersion(int *version) {
  *version = CUDA_VERSION;
  return CUDA_SUCCESS;
}

EXPORT CUresult cuDeviceGetCount(int *count) {
  *count = 1;
  return CUDA_SUCCESS;
}

EXPORT CUresult cuDeviceGet(CUdevice *device, int ordinal) {
  *device = ordinal;
  return ordinal == 0 ? CUDA_SUCCESS : CUDA_ERROR_INVALID_DEVICE;
}

EXPORT CUresult cuDeviceGetAttribute(int *value, CUdevice_attribute attribute, CUdevice device) {
  static const struct {
    CUdevice_attribute attribute;
    int value;
  } h200[] = {
      {CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR, 9},
      {CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR, 0},
      {CU_DEVICE_ATTRIBUTE_COOPERATIVE_LAUNCH, 1},
      {CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT, SMS},
      {CU_DEVICE_ATTRIBUTE_WARP_SIZE, WARP},
      {CU_DEVICE_ATTRIBUTE_MAX_THREADS_PER_BLOCK, THREADS_PER_BLOCK},
      {CU_DEVICE_ATTRIBUTE_MAX_REGISTERS_PER_BLOCK, REGISTERS_PER_BLOCK},
      {CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK, SHARED_PER_BLOCK},
      {CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN, SHARED_PER_BLOCK_OPTIN},
      {CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_MULTIPROCESSOR, SHARED_PER_SM},
      {CU_DEVICE_ATTRIBUTE_CLOCK_RATE, 1980000},        /* kHz */
      {CU_DEVICE_ATTRIBUTE_MEMORY_CLOCK_RATE, 3201000}, /* kHz */
      {CU_DEVICE_ATTRIBUTE_GLOBAL_MEMORY_BUS_WIDTH, 6144},
  };
  for (size_t i = 0; i < sizeof h200 / sizeof *h200; i++) {
    if (h200[i].attribute == attribute) {
      *value = h200[i].value;
      return CUDA_SUCCESS;
    }
  }
  return CUDA_ERROR_INVALID_VALUE;
}

EXPORT CUresult cuDevicePrimaryCtxRetain(CUcontext *context, CUdevice device) {
  *context = (CUcontext)1;
  return CUDA_SUCCESS;
}

EXPORT CUresult cuCtxGetCurrent(CUcontext *context) { return cuDevicePrimaryCtxRetain(context, 0); }

EXPORT CUresult cuCtxSetCurrent(CUcontext context) { return CUDA_SUCCESS; }

EXPORT CUresult cuCtxGetDevice(CUdevice *device) { return cuDeviceGet(device, 0); }

EXPORT CUresult cuCtxGetLimit(size_t *value, CUlimit limit) { return CUDA_ERROR_UNSUPPORTED_LIMIT; }

EXPORT CUresult cuCtxSetLimit(CUlimit limit, size_t value) { return CUDA_ERROR_UNSUPPORTED_LIMIT; }

EXPORT CUresult cuStreamIsCapturing(CUstream stream, CUstreamCaptureStatus *status) {
  *status = CU_STREAM_CAPTURE_STATUS_NONE;
  return CUDA_SUCCESS;
}

/* Every address is one of the GPU's: tensors on the CPU stand for CUDA tensors. */
EXPORT CUresult cuPointerGetAttribute(void *data, CUpointer_attribute attribute, CUdeviceptr pointer) {
  if (attribute != CU_POINTER_ATTRIBUTE_DEVICE_POINTER)
    return CUDA_ERROR_INVALID_VALUE;
  *(CUdeviceptr *)data = pointer;
  return CUDA_SUCCESS;
}

EXPORT CUresult cuGetErrorString(CUresult error, const char **text) {
  *text = error == CUDA_SUCCESS                             ? "no error"
          : error == CUDA_ERROR_INVALID_VALUE               ? "invalid argument"
          : error == CUDA_ERROR_INVALID_IMAGE               ? "device kernel image is invalid"
          : error == CUDA_ERROR_LAUNCH_OUT_OF_RESOURCES     ? "too many resources requested for launch"
          : error == CUDA_ERROR_COOPERATIVE_LAUNCH_TOO_LARGE ? "too many blocks in cooperative launch"
                                                            : "an error of the stub libcuda";
  return CUDA_SUCCESS;
}

/* ------------------------------------------------------------------------------------------------ kernels */

EXPORT CUresult cuModuleLoadData(CUmodule *module, const void *image) {
  const Elf64_Ehdr *header = image;
  FILE *file = log_file();
  CUresult result = CUDA_ERROR_INVALID_IMAGE;
  size_t size = 0;
  if (!memcmp(header->e_ident, ELFMAG, SELFMAG) && header->e_machine == EM_CUDA) {
    const Elf64_Shdr *sections = (const Elf64_Shdr *)((const char *)image + header->e_shoff);
    size = header->e_shoff + header->e_shnum * sizeof(Elf64_Shdr);
    for (int i = 0; i < header->e_shnum; i++) {
      size_t end = sections[i].sh_offset + (sections[i].sh_type == SHT_NOBITS ? 0 : sections[i].sh_size);
      size = end > size ? end : size;
    }
    *module = malloc(sizeof **module);
    (*module)->image = memcpy(malloc(size), image, size);
    result = CUDA_SUCCESS;
  }
  fprintf(file, "{\"call\": \"cuModuleLoadData\", \"bytes\": %zu, \"result\": %d", size, result);
  end_of_line(file);
  return result;
}

EXPORT CUresult cuModuleUnload(CUmodule module) {
  free(module->image);
  free(module);
  return CUDA_SUCCESS;
}

EXPORT CUresult cuModuleGetFunction(CUfunction *function, CUmodule module, const char *name) {
  const Elf64_Shdr *info = section(module->image, ".nv.info.", name);
  if (!info || !section(module->image, ".text.", name) || strlen(name) >= sizeof(*function)->name)
    return CUDA_ERROR_NOT_FOUND;
  CUfunction f = calloc(1, sizeof *f); /* for as long as the process: Triton never unloads what it may launch */
  strcpy(f->name, name);
  read_registers(f, module->image);
  f->dynamic_shared = SHARED_PER_BLOCK;
  read_parameters(f, module->image, info);
  if (!f->registers || !f->parameters) /* cubins say otherwise today what is read here */
    return CUDA_ERROR_INVALID_IMAGE;
  *function = f;
  return CUDA_SUCCESS;
}

EXPORT CUresult cuFuncGetAttribute(int *value, CUfunction_attribute attribute, CUfunction f) {
  int per_thread = (f->registers + 7) / 8 * 8; /* registers are handed out by eights */
  int threads = REGISTERS_PER_BLOCK / per_thread / WARP * WARP;
  switch (attribute) {
  case CU_FUNC_ATTRIBUTE_NUM_REGS:
    *value = f->registers;
    return CUDA_SUCCESS;
  case CU_FUNC_ATTRIBUTE_MAX_THREADS_PER_BLOCK:
    *value = threads < THREADS_PER_BLOCK ? threads : THREADS_PER_BLOCK;
    return CUDA_SUCCESS;
  case CU_FUNC_ATTRIBUTE_LOCAL_SIZE_BYTES:  /* Triton counts spills by it; */
  case CU_FUNC_ATTRIBUTE_SHARED_SIZE_BYTES: /* all of Triton's shared memory is dynamic */
    *value = 0;
    return CUDA_SUCCESS;
  default:
    return CUDA_ERROR_INVALID_VALUE;
  }
}

EXPORT CUresult cuFuncSetAttribute(CUfunction f, CUfunction_attribute attribute, int value) {
  FILE *file = log_file();
  CUresult result = CUDA_ERROR_INVALID_VALUE; /* as for shared memory beyond 227 KB, which Triton 3.9 asks for first */
  if (attribute == CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES && value <= SHARED_PER_BLOCK_OPTIN) {
    f->dynamic_shared = value;
    result = CUDA_SUCCESS;
  } else if (attribute == CU_FUNC_ATTRIBUTE_NON_PORTABLE_CLUSTER_SIZE_ALLOWED) {
    f->cluster_of_16 = value;
    result = CUDA_SUCCESS;
  }
  fprintf(file, "{\"call\": \"cuFuncSetAttribute\", \"function\": %ju, \"name\": \"%s\", ", (uintmax_t)(uintptr_t)f, f->name);
  fprintf(file, "\"attribute\": %d, \"value\": %d, \"result\": %d", (int)attribute, value, result);
  end_of_line(file);
  return result;
}

EXPORT CUresult cuFuncSetCacheConfig(CUfunction f, CUfunc_cache config) { return CUDA_SUCCESS; }

/* CTAs of a cooperative launch that fit: one on every SM, of which part may be another's. */
static int together(void) {
  const char *text = getenv("RNN_TRITON_STUB_TOGETHER");
  return text ? atoi(text) : SMS;
}

EXPORT CUresult cuLaunchKernelEx(const CUlaunchConfig *config, CUfunction f, void **parameters, void **extra) {
  FILE *file = log_file();
  int cooperative = 0;
  unsigned cluster[3] = {1, 1, 1};
  CUresult result = CUDA_SUCCESS;
  long long ctas = (long long)config->gridDimX * config->gridDimY * config->gridDimZ;
  long long threads = (long long)config->blockDimX * config->blockDimY * config->blockDimZ;
  int allowed;

  flockfile(file); /* Triton launches without the interpreter lock */
  fprintf(file, "{\"call\": \"cuLaunchKernelEx\", \"function\": %ju, \"name\": \"%s\", ", (uintmax_t)(uintptr_t)f, f->name);
  fprintf(file, "\"grid\": [%u, %u, %u], ", config->gridDimX, config->gridDimY, config->gridDimZ);
  fprintf(file, "\"block\": [%u, %u, %u], ", config->blockDimX, config->blockDimY, config->blockDimZ);
  fprintf(file, "\"shared_bytes\": %u, \"stream\": %ju, ", config->sharedMemBytes, (uintmax_t)(uintptr_t)config->hStream);
  fprintf(file, "\"attributes\": [");
  for (unsigned i = 0; i < config->numAttrs; i++) {
    const CUlaunchAttribute *attribute = &config->attrs[i];
    fprintf(file, "%s%d", i ? ", " : "", (int)attribute->id);
    if (attribute->id == CU_LAUNCH_ATTRIBUTE_COOPERATIVE)
      cooperative = attribute->value.cooperative;
    if (attribute->id == CU_LAUNCH_ATTRIBUTE_CLUSTER_DIMENSION) {
      cluster[0] = attribute->value.clusterDim.x;
      cluster[1] = attribute->value.clusterDim.y;
      cluster[2] = attribute->value.clusterDim.z;
    }
  }
  fprintf(file, "], \"cooperative\": %s, ", cooperative ? "true" : "false");
  fprintf(file, "\"cluster\": [%u, %u, %u], \"parameters\": [", cluster[0], cluster[1], cluster[2]);
  for (int i = 0; i < f->parameters; i++) {
    uint64_t value = 0;
    if (f->parameter_bytes[i] <= sizeof value) /* else a descriptor: 0 */
      memcpy(&value, parameters[i], f->parameter_bytes[i]);
    fprintf(file, "%s%ju", i ? ", " : "", (uintmax_t)value);
  }

  cuFuncGetAttribute(&allowed, CU_FUNC_ATTRIBUTE_MAX_THREADS_PER_BLOCK, f);
  if (config->sharedMemBytes > (unsigned)f->dynamic_shared)
    result = CUDA_ERROR_INVALID_VALUE;
  else if (threads > allowed)
    result = CUDA_ERROR_LAUNCH_OUT_OF_RESOURCES;
  else if (cluster[0] * cluster[1] * cluster[2] > (f->cluster_of_16 ? 16 : 8) || config->gridDimX % cluster[0])
    result = CUDA_ERROR_INVALID_VALUE;
  else if (cooperative && ctas > together())
    result = CUDA_ERROR_COOPERATIVE_LAUNCH_TOO_LARGE;
  fprintf(file, "], \"result\": %d", result);
  end_of_line(file);
  funlockfile(file);
  return result;
}

EXPORT CUresult cuOccupancyMaxActiveClusters(int *clusters, CUfunction f, const CUlaunchConfig *config) {
  return CUDA_ERROR_NOT_SUPPORTED;
}
