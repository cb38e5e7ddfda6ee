/*
 * What is measured in a Linux guest, and natively: one static program, which is its own init.
 *
 * It prints "ready", a line "name nanoseconds" for each thing it measures, and "done". Each is repeated until
 * enough time has passed, so that it takes as long on a slow machine as on a fast one.
 */
#define _GNU_SOURCE
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

enum { PAGE = 4096, PAGES = 256, ENOUGH = 30 * 1000 * 1000 };

static char *self;

static uint64_t now(void)
{
	struct timespec t;
	clock_gettime(CLOCK_MONOTONIC, &t);
	return t.tv_sec * 1000000000ull + t.tv_nsec;
}

/*
 * Kernels take a second or two to trust the time stamp counter; until then their clock moves with the timer's
 * interrupts.
 */
static void wait_for_a_fine_clock(void)
{
	for (int tries = 0; tries < 100; tries++) {
		uint64_t start = now(), next;
		while ((next = now()) == start)
			;
		if (next - start < 100 * 1000)
			return;
		usleep(100 * 1000);
	}
}

/* Does something `count` times in a row. */
typedef void (*work)(unsigned count);

static void getppid_call(unsigned count)
{
	while (count--)
		syscall(SYS_getppid);
}

static int there[2], back[2];

static void pipe_round_trip(unsigned count)
{
	char byte = 0;
	while (count--)
		if (write(there[1], &byte, 1) != 1 || read(back[0], &byte, 1) != 1)
			abort();
}

/* The other end of the round trip. */
static pid_t echo(void)
{
	char byte;
	pid_t child;
	if (pipe(there) || pipe(back) || (child = fork()) < 0)
		abort();
	if (child == 0)
		for (;;)
			if (read(there[0], &byte, 1) != 1 || write(back[1], &byte, 1) != 1)
				_exit(0);
	return child;
}

static void fork_wait(unsigned count)
{
	while (count--) {
		pid_t child = fork();
		if (child == 0)
			_exit(0);
		if (child < 0 || waitpid(child, NULL, 0) != child)
			abort();
	}
}

static void fork_exec_wait(unsigned count)
{
	while (count--) {
		pid_t child = fork();
		if (child == 0) {
			execl(self, self, "nothing", NULL);
			_exit(1);
		}
		if (child < 0 || waitpid(child, NULL, 0) != child)
			abort();
	}
}

static char *map(size_t bytes)
{
	char *at = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	if (at == MAP_FAILED)
		abort();
	return at;
}

/* A fault for each page of a fresh mapping; making and dropping the mapping is shared by many. */
static void page_fault(unsigned count)
{
	while (count > 0) {
		unsigned pages = count < PAGES ? count : PAGES;
		char *at = map(PAGES * PAGE);
		for (unsigned i = 0; i < pages; i++)
			((volatile char *)at)[i * PAGE] = 1;
		munmap(at, PAGES * PAGE);
		count -= pages;
	}
}

static void mmap_touch_munmap(unsigned count)
{
	while (count--) {
		volatile char *at = map(PAGE);
		*at = 1;
		munmap((char *)at, PAGE);
	}
}

static volatile sig_atomic_t signals;

static void handler(int number)
{
	signals += number;
}

static void signal_self(unsigned count)
{
	pid_t me = getpid();
	signal(SIGUSR1, handler);
	while (count--)
		kill(me, SIGUSR1);
}

static volatile uint32_t sink;

/* Integers and branches: a sieve. */
static void sieve(unsigned count)
{
	enum { N = 20000 };
	static unsigned char composite[N];
	while (count--) {
		unsigned primes = 0;
		memset(composite, 0, N);
		for (unsigned i = 2; i < N; i++) {
			if (composite[i])
				continue;
			primes++;
			for (unsigned j = 2 * i; j < N; j += i)
				composite[j] = 1;
		}
		sink = primes;
	}
}

/* Calls and returns. */
static __attribute__((noinline)) uint32_t fibonacci(uint32_t n)
{
	return n < 2 ? n : fibonacci(n - 1) + fibonacci(n - 2);
}

static void calls(unsigned count)
{
	while (count--)
		sink = fibonacci(16);
}

/* Floating point. */
static void matrices(unsigned count)
{
	enum { N = 24 };
	static double a[N][N], b[N][N], c[N][N];
	while (count--) {
		for (int i = 0; i < N; i++)
			for (int j = 0; j < N; j++) {
				double sum = 0;
				for (int k = 0; k < N; k++)
					sum += a[i][k] * b[k][j];
				c[i][j] = sum + i - j;
			}
		memcpy(a, c, sizeof a);
		a[count % N][count % N] = 1.5;
	}
	sink = (uint32_t)c[1][2];
}

/* Memory, and a hash: loads, shifts and multiplications. */
static void hash(unsigned count)
{
	static uint32_t words[16384];
	while (count--) {
		uint32_t h = 2166136261u;
		for (unsigned i = 0; i < 16384; i++) {
			h = (h ^ words[i]) * 16777619u;
			words[i] = h >> 7;
		}
		sink = h;
	}
}

/* Calls by pointers that differ each time. */
static uint32_t one(uint32_t x) { return x + 1; }
static uint32_t two(uint32_t x) { return x * 3; }
static uint32_t three(uint32_t x) { return x ^ 0x55; }
static uint32_t four(uint32_t x) { return x >> 1; }

static void indirect_calls(unsigned count)
{
	static uint32_t (*const table[])(uint32_t) = { one, two, three, four };
	uint32_t x = 1;
	while (count--)
		for (unsigned i = 0; i < 1000; i++)
			x = table[(x ^ i) & 3](x);
	sink = x;
}

/* The time of one turn, in nanoseconds. */
static void measure(const char *name, work what)
{
	unsigned count = 1;
	uint64_t took;
	for (;; count *= 2) {
		uint64_t start = now();
		what(count);
		took = now() - start;
		if (took >= ENOUGH || count > 1u << 30)
			break;
	}
	printf("%s %.1f\n", name, (double)took / count);
	fflush(stdout);
}

int main(int argc, char **argv)
{
	self = argv[0];
	if (argc > 1 && strcmp(argv[1], "nothing") == 0)
		return 0;
	puts("ready");
	fflush(stdout);
	wait_for_a_fine_clock();
	pid_t other = echo();
	measure("getppid", getppid_call);
	measure("pipe", pipe_round_trip);
	kill(other, SIGKILL);
	waitpid(other, NULL, 0);
	measure("signal", signal_self);
	measure("fault", page_fault);
	measure("mmap", mmap_touch_munmap);
	measure("fork", fork_wait);
	measure("exec", fork_exec_wait);
	measure("sieve", sieve);
	measure("calls", calls);
	measure("indirect", indirect_calls);
	measure("matrices", matrices);
	measure("hash", hash);
	puts("done");
	fflush(stdout);
	if (getpid() == 1)
		for (;;)
			pause();
	return 0;
}
