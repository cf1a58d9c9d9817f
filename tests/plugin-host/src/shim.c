// What stable Rust can't define: Slurm's variadic functions. And the C library's calls that the plugin uses
// for reading and for changing its process, each of which can be made to fail: as the program's own
// functions they are found before the library's.
#define _GNU_SOURCE
#include <dirent.h>
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <ifaddrs.h>
#include <sched.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

// In Rust, exports.rs.
unsigned host_get_item(void *spank, unsigned item, void *value);
void host_log(int level, const char *text);

unsigned spank_get_item(void *spank, unsigned item, ...)
{
	va_list arguments;
	va_start(arguments, item);
	void *value = va_arg(arguments, void *);
	va_end(arguments);
	return host_get_item(spank, item, value);
}

#define LOG(name, level)                                       \
	__attribute__((format(printf, 1, 2)))                  \
	void name(const char *format, ...)                     \
	{                                                      \
		va_list arguments;                             \
		char *text = NULL;                             \
		va_start(arguments, format);                   \
		if (vasprintf(&text, format, arguments) >= 0) {\
			host_log(level, text);                 \
			free(text);                            \
		}                                              \
		va_end(arguments);                             \
	}

LOG(slurm_error, 0)
LOG(slurm_info, 1)
LOG(slurm_verbose, 2)
LOG(slurm_debug, 3)

// Counted only while a hook runs, so that the host's own calls are left alone.
static int armed;
static long calls;
static long fail_at = -1;
static int fail_with;

void host_io_arm(int on) { armed = on; }
long host_io_calls(void) { return calls; }
void host_io_reset(long at, int error) { calls = 0; fail_at = at; fail_with = error; }

static int fails(void)
{
	if (!armed || calls++ != fail_at)
		return 0;
	errno = fail_with;
	return 1;
}

#define REAL(name) ((__typeof__(&name)) real(&name##_address, #name))
static void *real(void **address, const char *name)
{
	if (!*address && !(*address = dlsym(RTLD_NEXT, name)))
		abort();
	return *address;
}

#define WRAP(type, failure, name, parameters, ...) \
	static void *name##_address;               \
	type name parameters                       \
	{                                          \
		if (fails())                       \
			return failure;            \
		return REAL(name)(__VA_ARGS__);    \
	}

#define WRAP_OPEN(name)                                                              \
	static void *name##_address;                                                 \
	int name(const char *path, int flags, ...)                                   \
	{                                                                            \
		va_list arguments;                                                   \
		va_start(arguments, flags);                                          \
		unsigned mode = flags & (O_CREAT | O_TMPFILE) ? va_arg(arguments, unsigned) : 0; \
		va_end(arguments);                                                   \
		return fails() ? -1 : REAL(name)(path, flags, mode);                 \
	}

WRAP_OPEN(open)
WRAP_OPEN(open64)
WRAP(ssize_t, -1, read, (int fd, void *to, size_t size), fd, to, size)
WRAP(ssize_t, -1, readlink, (const char *path, char *to, size_t size), path, to, size)
WRAP(char *, NULL, realpath, (const char *path, char *to), path, to)
WRAP(DIR *, NULL, opendir, (const char *path), path)
WRAP(struct dirent64 *, NULL, readdir64, (DIR *folder), folder)
WRAP(int, -1, fstat64, (int fd, struct stat64 *to), fd, to)
WRAP(int, -1, stat64, (const char *path, struct stat64 *to), path, to)
WRAP(int, -1, statx, (int fd, const char *path, int flags, unsigned mask, struct statx *to), fd, path, flags,
     mask, to)
WRAP(off64_t, -1, lseek64, (int fd, off64_t offset, int whence), fd, offset, whence)
WRAP(void *, MAP_FAILED, mmap, (void *at, size_t size, int protection, int flags, int fd, off_t offset), at, size,
     protection, flags, fd, offset)
WRAP(void *, MAP_FAILED, mmap64, (void *at, size_t size, int protection, int flags, int fd, off64_t offset), at,
     size, protection, flags, fd, offset)
WRAP(int, -1, getrlimit, (__rlimit_resource_t which, struct rlimit *to), which, to)
WRAP(int, -1, setrlimit, (__rlimit_resource_t which, const struct rlimit *to), which, to)
WRAP(int, -1, sched_getaffinity, (pid_t pid, size_t size, cpu_set_t *to), pid, size, to)
WRAP(int, -1, sched_setaffinity, (pid_t pid, size_t size, const cpu_set_t *to), pid, size, to)
WRAP(int, -1, getifaddrs, (struct ifaddrs **to), to)
WRAP(int, -1, socket, (int domain, int type, int protocol), domain, type, protocol)
WRAP(ssize_t, -1, recv, (int fd, void *to, size_t size, int flags), fd, to, size, flags)
WRAP(int, -1, setenv, (const char *name, const char *value, int overwrite), name, value, overwrite)
WRAP(int, -1, unsetenv, (const char *name), name)

// Memory policy and random bytes.
static void *syscall_address;
long syscall(long number, ...)
{
	long a[6];
	va_list arguments;
	va_start(arguments, number);
	for (int i = 0; i < 6; i++)
		a[i] = va_arg(arguments, long);
	va_end(arguments);
	return fails() ? -1 : REAL(syscall)(number, a[0], a[1], a[2], a[3], a[4], a[5]);
}
