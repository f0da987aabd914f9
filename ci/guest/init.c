// SPDX-License-Identifier: GPL-2.0
/*
 * PID 1 of the guest. It runs one job on the disk and tells the host, over a port of its own, how that
 * ended: a line "<nonce> <status>", the last thing before it powers off. A kernel that panics, hangs or
 * corrupts its init does not get to write it.
 *
 * /ci/options in the initramfs, key=value lines:
 *   nonce=WORD     what the token starts with
 *   build-id=HEX   of the kernel that has to run
 *   probe=1        write the token at once, without a disk
 *   shell=1        an interactive shell on the console in place of the job
 *   small=1        the initramfs stays the root file system, the disk has /ksft
 *   runner=PATH    what runs the job; /bin/bash by default
 *   console=TTY    that console
 *   timeout=SEC    since boot, for the job; its status is 124 then
 *   cwd=DIR        of the job, /ksft/mm by default
 * /ci/job there is the job, a script for the runner.
 *
 * Nothing here may wait without a limit.
 */
#define _GNU_SOURCE
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mount.h>
#include <sys/reboot.h>
#include <sys/stat.h>
#include <sys/swap.h>
#include <sys/sysmacros.h>
#include <sys/wait.h>
#include <termios.h>
#include <time.h>
#include <unistd.h>

#define MAX_JOB		(1 << 20)
#define KMEMLEAK	"/sys/kernel/debug/kmemleak"
#define STATUS_TIMEOUT	124
#define STATUS_SETUP	125

static char options[4096];
static char job[MAX_JOB];
static char job_env[] = "PATH=/usr/bin:/usr/sbin:/bin:/sbin";
static int console = 2;
static int small;

static void say(const char *fmt, ...)
{
	char line[1024];
	va_list ap;
	int n;

	n = snprintf(line, sizeof(line), "init: ");
	va_start(ap, fmt);
	n += vsnprintf(line + n, sizeof(line) - n - 2, fmt, ap);
	va_end(ap);
	if (n > (int)sizeof(line) - 2)
		n = sizeof(line) - 2;
	line[n++] = '\n';
	if (write(console, line, n) != n)
		return;
}

static void __attribute__((noreturn)) power_off(void)
{
	reboot(RB_POWER_OFF);
	/* QEMU's -no-reboot makes an end of that, too. */
	reboot(RB_AUTOBOOT);
	for (;;)
		pause();
}

static void __attribute__((noreturn)) fatal(const char *what)
{
	say("FATAL: %s: %s", what, strerror(errno));
	power_off();
}

static double now(void)
{
	struct timespec ts;

	clock_gettime(CLOCK_MONOTONIC, &ts);
	return ts.tv_sec + ts.tv_nsec / 1e9;
}

static void sleep_ms(int ms)
{
	struct timespec ts = { ms / 1000, (ms % 1000) * 1000000L };

	nanosleep(&ts, NULL);
}

static ssize_t read_file(const char *path, char *buf, size_t size)
{
	ssize_t n, done = 0;
	int fd = open(path, O_RDONLY | O_CLOEXEC);

	if (fd < 0)
		return -1;
	while (done < (ssize_t)size - 1 && (n = read(fd, buf + done, size - 1 - done)) > 0)
		done += n;
	close(fd);
	buf[done] = 0;
	return done;
}

static int write_all(int fd, const char *buf, size_t len)
{
	while (len) {
		ssize_t n = write(fd, buf, len);

		if (n < 0 && errno == EINTR)
			continue;
		if (n <= 0)
			return -1;
		buf += n;
		len -= n;
	}
	return 0;
}

static int write_file(const char *path, const char *text)
{
	int fd = open(path, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0755);
	int ret;

	if (fd < 0)
		return -1;
	ret = write_all(fd, text, strlen(text));
	close(fd);
	return ret;
}

/* A setting that this kernel may not have. */
static void set(const char *path, const char *text)
{
	if (!access(path, F_OK) && write_file(path, text))
		say("note: %s: %s", path, strerror(errno));
}

static const char *option(const char *key, const char *fallback)
{
	static char values[8][256];
	static int next;
	size_t len = strlen(key);
	const char *line = options;

	while (line && *line) {
		if (!strncmp(line, key, len) && line[len] == '=') {
			char *value = values[next++ % 8];

			snprintf(value, sizeof(values[0]), "%.*s", (int)strcspn(line + len + 1, "\n"), line + len + 1);
			return value;
		}
		line = strchr(line, '\n');
		if (line)
			line++;
	}
	return fallback;
}

static void mount_or_die(const char *type, const char *where, unsigned long flags, const char *data)
{
	if (mkdir(where, 0755) && errno != EEXIST)
		fatal(where);
	if (mount(type, where, type, flags, data) && errno != EBUSY)
		fatal(where);
}

/* What a configuration may leave out. */
static void mount_if(const char *type, const char *where)
{
	mkdir(where, 0755);
	if (mount(type, where, type, 0, NULL) && errno != EBUSY && errno != ENODEV)
		say("note: no %s on %s: %s", type, where, strerror(errno));
}

/* Finds what has TEXT as the content of its ATTRIBUTE below a class of sysfs; probing takes its time. */
static int find(const char *class, const char *attribute, const char *text, int seconds, char *dev, size_t size)
{
	double end = now() + seconds;
	char path[512], value[128];

	do {
		DIR *dir = opendir(class);
		struct dirent *e;

		while (dir && (e = readdir(dir))) {
			snprintf(path, sizeof(path), "%s/%s/%s", class, e->d_name, attribute);
			if (read_file(path, value, sizeof(value)) < 0)
				continue;
			value[strcspn(value, "\n")] = 0;
			if (strcmp(value, text))
				continue;
			snprintf(dev, size, "/dev/%s", e->d_name);
			closedir(dir);
			return 0;
		}
		if (dir)
			closedir(dir);
		sleep_ms(50);
	} while (now() < end);
	errno = ENODEV;
	return -1;
}

static int open_port(const char *name)
{
	char dev[300];
	int fd = -1, tries;

	if (find("/sys/class/virtio-ports", "name", name, 10, dev, sizeof(dev)))
		return -1;
	for (tries = 0; tries < 100; tries++) {
		fd = open(dev, O_WRONLY | O_CLOEXEC);
		if (fd >= 0)
			break;
		sleep_ms(50);
	}
	return fd;
}

static void reap(pid_t wanted, int *status, int *gone)
{
	pid_t pid;
	int st;

	while ((pid = waitpid(-1, &st, WNOHANG)) > 0) {
		if (pid != wanted)
			continue;
		*gone = 1;
		*status = WIFEXITED(st) ? WEXITSTATUS(st) : 128 + WTERMSIG(st);
	}
}

/* Runs FN in a process of its own, for it may get stuck in the kernel. */
static void bounded(const char *what, void (*fn)(void), int seconds)
{
	double end = now() + seconds;
	int gone = 0;
	pid_t pid = fork();

	if (pid < 0) {
		say("note: %s: %s", what, strerror(errno));
		return;
	}
	if (!pid) {
		fn();
		_exit(0);
	}
	while (!gone && now() < end) {
		sleep_ms(20);
		if (waitpid(pid, NULL, WNOHANG) == pid)
			gone = 1;
	}
	if (!gone) {
		say("BUG: %s has not finished after %d s", what, seconds);
		set("/proc/sysrq-trigger", "w");
		kill(pid, SIGKILL);
	}
}

static void kmemleak_start(void)
{
	set(KMEMLEAK, "scan=off");
	set(KMEMLEAK, "clear");
}

/* An object counts when two scans in a row do not find it, and when it has some age. */
static void kmemleak_scan(void)
{
	char line[512];
	FILE *f;

	sleep_ms(6000);
	set(KMEMLEAK, "scan");
	sleep_ms(6000);
	set(KMEMLEAK, "scan");
	f = fopen(KMEMLEAK, "re");
	while (f && fgets(line, sizeof(line), f)) {
		line[strcspn(line, "\n")] = 0;
		say("kmemleak: %s", line);
	}
}

static void quiesce(void)
{
	sync();
	if (mount(NULL, small ? "/ksft" : "/", NULL, MS_REMOUNT | MS_RDONLY, NULL))
		say("note: the disk's file system stays writable: %s", strerror(errno));
	sync();
}

static void child_exec(char *const argv[])
{
	char *const env[] = { job_env, "HOME=/root", "LANG=C", "LC_ALL=C", "TERM=linux", "CI=guest", NULL };
	sigset_t none;

	sigemptyset(&none);
	sigprocmask(SIG_SETMASK, &none, NULL);
	signal(SIGPIPE, SIG_DFL);
	execve(argv[0], argv, env);
	say("FATAL: %s: %s", argv[0], strerror(errno));
	_exit(STATUS_SETUP);
}

/* Where each process is. */
static void show_processes(void)
{
	DIR *dir = opendir("/proc");
	struct dirent *e;

	while (dir && (e = readdir(dir))) {
		char path[300], name[256], stack[700];

		snprintf(path, sizeof(path), "/proc/%s/cmdline", e->d_name);
		if (atoi(e->d_name) < 2 || read_file(path, name, sizeof(name)) <= 0)
			continue;
		snprintf(path, sizeof(path), "/proc/%s/stack", e->d_name);
		if (read_file(path, stack, sizeof(stack)) <= 0)
			strcpy(stack, "?");
		say("process %s %s:\n%s", e->d_name, name, stack);
	}
	if (dir)
		closedir(dir);
}

static void drain(int from, int to)
{
	char buf[65536];
	ssize_t n;

	while ((n = read(from, buf, sizeof(buf))) > 0)
		if (write_all(to, buf, n))
			return;
}

/*
 * The job writes into a pipe, as a port can be opened only once and tests that write to /dev/stdout
 * would get EBUSY.
 */
static int run_job(int ktap)
{
	char *argv[] = { (char *)option("runner", "/bin/bash"), "/ci/job", NULL };
	double end = atoi(option("timeout", "600"));
	int pipefd[2], gone = 0, status = STATUS_SETUP, late = 0;
	pid_t pid;

	if (pipe2(pipefd, O_CLOEXEC) || fcntl(pipefd[0], F_SETFL, O_NONBLOCK))
		fatal("pipe");
	fcntl(pipefd[0], F_SETPIPE_SZ, 1 << 20);
	pid = fork();
	if (pid < 0)
		fatal("fork");
	if (!pid) {
		int null = open("/dev/null", O_RDONLY);

		setsid();
		if (null < 0 || dup2(null, 0) || dup2(pipefd[1], 1) != 1 || dup2(pipefd[1], 2) != 2)
			_exit(STATUS_SETUP);
		if (null > 2)
			close(null);
		if (chdir(option("cwd", "/ksft/mm")) && chdir("/"))
			_exit(STATUS_SETUP);
		child_exec(argv);
	}
	close(pipefd[1]);
	while (!gone) {
		struct pollfd p = { .fd = pipefd[0], .events = POLLIN };

		if (poll(&p, 1, 100) > 0) {
			drain(pipefd[0], ktap);
			if (!(p.revents & POLLIN))
				sleep_ms(20);
		}
		reap(pid, &status, &gone);
		if (gone || now() < end)
			continue;
		if (late)
			break;
		say("BUG: the job has not finished in time");
		bounded("/proc", show_processes, 5);
		set("/proc/sysrq-trigger", "w");
		set("/proc/sysrq-trigger", "l");
		kill(-1, SIGKILL);
		late = 1;
		end = now() + 10;
	}
	drain(pipefd[0], ktap);
	/* What it left in the background must not hold the leak scan or the disk. */
	kill(-1, SIGKILL);
	sleep_ms(100);
	drain(pipefd[0], ktap);
	close(pipefd[0]);
	return late ? STATUS_TIMEOUT : status;
}

static int run_shell(void)
{
	char *argv[] = { access("/bin/bash", X_OK) ? "/bin/sh" : "/bin/bash", "-i", NULL };
	int gone = 0, status = STATUS_SETUP;
	char tty[300];
	pid_t pid;

	snprintf(tty, sizeof(tty), "/dev/%s", option("console", "ttyS0"));
	pid = fork();
	if (pid < 0)
		fatal("fork");
	if (!pid) {
		int fd;

		setsid();
		fd = open(tty, O_RDWR);
		if (fd < 0 || ioctl(fd, TIOCSCTTY, 1))
			say("note: %s: %s", tty, strerror(errno));
		if (dup2(fd, 0) || dup2(fd, 1) != 1 || dup2(fd, 2) != 2)
			_exit(STATUS_SETUP);
		if (fd > 2)
			close(fd);
		if (chdir(option("cwd", "/ksft/mm")) && chdir("/"))
			_exit(STATUS_SETUP);
		child_exec(argv);
	}
	/* The one wait that is as long as the user likes. */
	while (!gone) {
		sleep_ms(50);
		reap(pid, &status, &gone);
	}
	return status;
}

static void mount_disk(void)
{
	static const char *const moved[] = { "/dev", "/proc", "/sys" };
	char dev[300], to[64];
	size_t i;

	if (find("/sys/block", "serial", "root", 20, dev, sizeof(dev)))
		fatal("root disk");
	if (small) {
		mkdir("/ksft", 0755);
		if (mount(dev, "/ksft", "ext4", 0, NULL))
			fatal(dev);
		return;
	}
	mkdir("/new", 0755);
	if (mount(dev, "/new", "ext4", 0, NULL))
		fatal(dev);
	for (i = 0; i < sizeof(moved) / sizeof(moved[0]); i++) {
		snprintf(to, sizeof(to), "/new%s", moved[i]);
		mkdir(to, 0755);
		if (mount(moved[i], to, NULL, MS_MOVE, NULL))
			fatal(to);
	}
	if (chdir("/new") || mount(".", "/", NULL, MS_MOVE, NULL) || chroot(".") || chdir("/"))
		fatal("switch_root");
}

static void set_up(void)
{
	char dev[300];

	mount_or_die("devpts", "/dev/pts", 0, "gid=5,mode=620,ptmxmode=666");
	mount_or_die("tmpfs", "/dev/shm", MS_NOSUID | MS_NODEV, "mode=1777");
	mount_or_die("tmpfs", "/tmp", MS_NOSUID | MS_NODEV, "mode=1777");
	mount_or_die("tmpfs", "/run", MS_NOSUID | MS_NODEV, "mode=755");
	mount_if("debugfs", "/sys/kernel/debug");
	mount_if("tracefs", "/sys/kernel/tracing");
	mount_if("cgroup2", "/sys/fs/cgroup");
	if (symlink("/proc/self/fd", "/dev/fd") || symlink("/proc/self/fd/0", "/dev/stdin") ||
	    symlink("/proc/self/fd/1", "/dev/stdout") || symlink("/proc/self/fd/2", "/dev/stderr"))
		say("note: links in /dev: %s", strerror(errno));
	if (sethostname("guest", 5))
		say("note: hostname: %s", strerror(errno));

	set("/proc/sys/kernel/panic_on_oops", "1");
	set("/proc/sys/kernel/sysrq", "1");
	set("/proc/sys/kernel/printk_devkmsg", "on");
	set("/proc/sys/kernel/printk", "8 4 1 8");

	if (find("/sys/block", "serial", "swap", 2, dev, sizeof(dev)) || swapon(dev, 0))
		say("note: no swap: %s", strerror(errno));
	mkdir("/ci", 0755);
	if (write_file("/ci/job", job) || write_file("/ci/options", options))
		fatal("/ci");
}

/* An image may be older than the vmlinux beside it. */
static void check_build_id(const char *wanted)
{
	char notes[4096], id[64];
	ssize_t n = read_file("/sys/kernel/notes", notes, sizeof(notes));
	size_t len = 0;

	while (len < sizeof(id) && sscanf(wanted + 2 * len, "%2hhx", (unsigned char *)&id[len]) == 1)
		len++;
	if (!len || (n > 0 && memmem(notes, n, id, len)))
		return;
	say("FATAL: this is not the kernel of build ID %s", wanted);
	power_off();
}

int main(void)
{
	int ktap, token, status = 0;
	char line[512];

	if (getpid() != 1) {
		fprintf(stderr, "init: this is for PID 1\n");
		return 1;
	}
	signal(SIGPIPE, SIG_IGN);
	mkdir("/dev", 0755);
	if (mount("devtmpfs", "/dev", "devtmpfs", 0, "mode=755") && errno != EBUSY)
		fatal("/dev");
	console = open("/dev/console", O_RDWR | O_CLOEXEC | O_NOCTTY);
	if (console < 0)
		console = 2;
	mount_or_die("proc", "/proc", 0, NULL);
	mount_or_die("sysfs", "/sys", 0, NULL);
	if (read_file("/ci/options", options, sizeof(options)) < 0)
		fatal("/ci/options");
	token = open_port("token");
	if (token < 0)
		fatal("port token");
	check_build_id(option("build-id", ""));

	if (!*option("probe", "")) {
		if (read_file("/ci/job", job, sizeof(job)) < 0)
			fatal("/ci/job");
		ktap = open_port("ktap");
		if (ktap < 0)
			fatal("port ktap");
		small = *option("small", "");
		mount_disk();
		set_up();
		say("up after %.1f s", now());
		if (*option("shell", "")) {
			status = run_shell();
		} else {
			bounded("kmemleak", kmemleak_start, 60);
			status = run_job(ktap);
			say("job: status %d after %.1f s", status, now());
			if (status != STATUS_TIMEOUT && !access(KMEMLEAK, F_OK))
				bounded("kmemleak", kmemleak_scan, 300);
		}
		bounded("sync", quiesce, 60);
	}
	snprintf(line, sizeof(line), "%s %d\n", option("nonce", "none"), status);
	if (write_all(token, line, strlen(line)))
		fatal("token");
	power_off();
}
