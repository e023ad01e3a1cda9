// What a process does to the files of one folder: counted, and at the n-th operation killed, torn or refused, or
// written down with its data. Loaded before libc (LD_PRELOAD); tests/helpers/file_faults.py builds and drives it.
//
// Operations of one process, one thread. Nothing is synchronised for real: a killed process loses no written page, and
// what a machine without power loses is worked out from what was written down.

#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdarg.h>
#include <stdint.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

// In the order of KINDS in file_faults.py.
enum { OPEN, CREATE, WRITE, TRUNCATE, SYNC, UNLINK, LINK, RENAME, MAP, LOCK, CLOSE, MET, SAID };
enum { COUNT, KILL, TEAR, FAIL, FAIL_FROM };

#define FILES 4096

static char folder[4096];
static size_t folder_length;  // 0: nothing is looked at
static unsigned looked_at;    // a bit for each kind
static long count, chosen;
static int action, failure, log_file = -1;
static char ours[FILES];  // descriptors of files of the folder, and of the folder itself

struct record {
  int32_t kind, descriptor, first, second;  // the last two: lengths of the paths that follow
  int64_t offset, size;                     // of what was written; the new length
};

static void note(int kind, int descriptor, const char* first, const char* second, int64_t offset, int64_t size,
                 const void* data) {
  if (log_file < 0) return;
  struct record r = {kind, descriptor, first ? (int)strlen(first) : 0, second ? (int)strlen(second) : 0, offset, size};
  syscall(SYS_write, log_file, &r, sizeof r);
  if (first) syscall(SYS_write, log_file, first, strlen(first));
  if (second) syscall(SYS_write, log_file, second, strlen(second));
  if (data) syscall(SYS_write, log_file, data, (size_t)size);
}

static void killed(void) {
  syscall(SYS_kill, getpid(), SIGKILL);
  for (;;) pause();
}

// Counts an operation before it is done; 1 where it is to fail, 2 where half of it is to be done before the end.
static int met(int kind) {
  if (!(looked_at >> kind & 1)) return 0;
  ++count;
  note(MET, -1, 0, 0, kind, 0, 0);
  if (count == chosen && action == KILL) killed();
  if (count == chosen && action == TEAR) {
    if (kind != WRITE) killed();
    return 2;
  }
  if ((count == chosen && action == FAIL) || (count >= chosen && action == FAIL_FROM)) {
    errno = failure;
    return 1;
  }
  return 0;
}

static int within(const char* path) {
  return folder_length && path && !strncmp(path, folder, folder_length) &&
         (path[folder_length] == '/' || path[folder_length] == 0);
}

static int held(int descriptor) { return folder_length && descriptor >= 0 && descriptor < FILES && ours[descriptor]; }

// ------------------------------------------------------------------------------------------- what Python calls

void shim_begin(const char* path, unsigned kinds, long n, int how, int error, int log) {
  strncpy(folder, path, sizeof folder - 1);
  looked_at = kinds, count = 0, chosen = n, action = how, failure = error, log_file = log;
  folder_length = strlen(folder);
}

long shim_end(void) {
  folder_length = 0, log_file = -1, action = COUNT;
  memset(ours, 0, sizeof ours);
  return count;
}

void shim_note(const char* text) { note(SAID, -1, text, 0, 0, 0, 0); }

// ------------------------------------------------------------------------------------------- what libc offers

#define REAL(result, name, ...)       \
  static result (*real)(__VA_ARGS__); \
  if (!real) real = (result (*)(__VA_ARGS__))dlsym(RTLD_NEXT, #name)

static int opened(int (*real)(const char*, int, ...), const char* path, int flags, unsigned mode) {
  if (!within(path)) return real(path, flags, mode);
  struct stat there;
  int create = flags & O_CREAT && stat(path, &there) != 0;
  if (met(create ? CREATE : OPEN)) return -1;
  int descriptor = real(path, flags, mode);
  if (descriptor >= 0 && descriptor < FILES) {
    ours[descriptor] = 1;
    note(create ? CREATE : OPEN, descriptor, path, 0, flags, 0, 0);
    if (flags & O_TRUNC) note(TRUNCATE, descriptor, 0, 0, 0, 0, 0);
  }
  return descriptor;
}

#define OPENS(name)                                               \
  int name(const char* path, int flags, ...) {                    \
    REAL(int, name, const char*, int, ...);                       \
    va_list more;                                                 \
    va_start(more, flags);                                        \
    unsigned mode = flags & O_CREAT ? va_arg(more, unsigned) : 0; \
    va_end(more);                                                 \
    return opened(real, path, flags, mode);                       \
  }
OPENS(open)
OPENS(open64)

#define WRITES(name, offset_type)                                                   \
  ssize_t name(int descriptor, const void* data, size_t size, offset_type offset) { \
    REAL(ssize_t, name, int, const void*, size_t, offset_type);                     \
    if (!held(descriptor)) return real(descriptor, data, size, offset);             \
    int fate = met(WRITE);                                                          \
    if (fate == 1) return -1;                                                       \
    if (fate == 2) {                                                                \
      real(descriptor, data, size / 2, offset);                                     \
      killed();                                                                     \
    }                                                                               \
    ssize_t written = real(descriptor, data, size, offset);                         \
    if (written > 0) note(WRITE, descriptor, 0, 0, offset, written, data);          \
    return written;                                                                 \
  }
WRITES(pwrite, off_t)
WRITES(pwrite64, off64_t)

ssize_t write(int descriptor, const void* data, size_t size) {
  REAL(ssize_t, write, int, const void*, size_t);
  if (!held(descriptor)) return real(descriptor, data, size);
  int fate = met(WRITE);
  if (fate == 1) return -1;
  off_t offset = lseek(descriptor, 0, SEEK_CUR);
  if (fate == 2) {
    real(descriptor, data, size / 2);
    killed();
  }
  ssize_t written = real(descriptor, data, size);
  if (written > 0) note(WRITE, descriptor, 0, 0, offset, written, data);
  return written;
}

#define TRUNCATES(name, size_type)                  \
  int name(int descriptor, size_type size) {        \
    REAL(int, name, int, size_type);                \
    if (held(descriptor)) {                         \
      if (met(TRUNCATE)) return -1;                 \
      note(TRUNCATE, descriptor, 0, 0, 0, size, 0); \
    }                                               \
    return real(descriptor, size);                  \
  }
TRUNCATES(ftruncate, off_t)
TRUNCATES(ftruncate64, off64_t)

#define SYNCS(name)                          \
  int name(int descriptor) {                 \
    if (held(descriptor)) {                  \
      if (met(SYNC)) return -1;              \
      note(SYNC, descriptor, 0, 0, 0, 0, 0); \
    }                                        \
    return 0;                                \
  }
SYNCS(fsync)
SYNCS(fdatasync)

int close(int descriptor) {
  REAL(int, close, int);
  if (held(descriptor)) {
    if (met(CLOSE)) return -1;
    note(CLOSE, descriptor, 0, 0, 0, 0, 0);
    ours[descriptor] = 0;
  }
  return real(descriptor);
}

int unlink(const char* path) {
  REAL(int, unlink, const char*);
  if (!within(path)) return real(path);
  if (met(UNLINK)) return -1;
  int result = real(path);
  if (result == 0) note(UNLINK, -1, path, 0, 0, 0, 0);
  return result;
}

#define TWO_PATHS(name, kind)                           \
  int name(const char* from, const char* to) {          \
    REAL(int, name, const char*, const char*);          \
    if (!within(to)) return real(from, to);             \
    if (met(kind)) return -1;                           \
    int result = real(from, to);                        \
    if (result == 0) note(kind, -1, from, to, 0, 0, 0); \
    return result;                                      \
  }
TWO_PATHS(link, LINK)
TWO_PATHS(rename, RENAME)

int linkat(int folder_from, const char* from, int folder_to, const char* to, int flags) {
  REAL(int, linkat, int, const char*, int, const char*, int);
  if (!within(to)) return real(folder_from, from, folder_to, to, flags);
  if (met(LINK)) return -1;
  int result = real(folder_from, from, folder_to, to, flags);
  if (result == 0) note(LINK, -1, from, to, 0, 0, 0);
  return result;
}

#define MAPS(name, offset_type)                                                                         \
  void* name(void* where, size_t size, int protection, int flags, int descriptor, offset_type offset) { \
    REAL(void*, name, void*, size_t, int, int, int, offset_type);                                       \
    if (held(descriptor) && met(MAP)) return MAP_FAILED;                                                \
    return real(where, size, protection, flags, descriptor, offset);                                    \
  }
MAPS(mmap, off_t)
MAPS(mmap64, off64_t)

// Locks lie between what is written to the shared memory of a log, which no call shows.
#define LOCKS(name)                                                                              \
  int name(int descriptor, int command, ...) {                                                   \
    REAL(int, name, int, int, ...);                                                              \
    va_list more;                                                                                \
    va_start(more, command);                                                                     \
    void* argument = va_arg(more, void*);                                                        \
    va_end(more);                                                                                \
    if (held(descriptor) && (command == F_SETLK || command == F_SETLKW) && met(LOCK)) return -1; \
    return real(descriptor, command, argument);                                                  \
  }
LOCKS(fcntl)
LOCKS(fcntl64)
