// SPDX-License-Identifier: GPL-2.0
/*
 * Runs a job in a guest that has no shell: modules and test programs, with the output that run_vmtests.sh
 * would have. A line of the job is one of
 *
 *   category NAME
 *   load MODULE
 *   program NAME [ARG...]
 *   unload MODULE
 *   end NAME
 *
 * Programs are in the current directory, modules in /ci/modules; parameters for a module are those that the
 * kernel's command line has for it, as modprobe has it.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#define MAX_WORDS	4096
#define STATUS_SKIP	4

static int worst, programs, failed, skipped;

static char *uptime(void)
{
	static char text[64];
	FILE *f = fopen("/proc/uptime", "re");

	if (!f || fscanf(f, "%60s", text) != 1)
		strcpy(text, "0");
	if (f)
		fclose(f);
	return text;
}

/* What the command line has as "MODULE.name=value", without the module. */
static char *parameters(const char *module)
{
	static char line[4096], found[4096];
	size_t len = strlen(module);
	FILE *f = fopen("/proc/cmdline", "re");
	char *word;

	found[0] = 0;
	if (!f)
		return found;
	if (!fgets(line, sizeof(line), f))
		line[0] = 0;
	fclose(f);
	for (word = strtok(line, " \n"); word; word = strtok(NULL, " \n")) {
		if (strncmp(word, module, len) || word[len] != '.')
			continue;
		if (found[0])
			strcat(found, " ");
		strcat(found, word + len + 1);
	}
	return found;
}

static void load(const char *module)
{
	char path[300];
	int fd;

	snprintf(path, sizeof(path), "/ci/modules/%s.ko", module);
	fd = open(path, O_RDONLY | O_CLOEXEC);
	if (fd < 0 || syscall(SYS_finit_module, fd, parameters(module), 0))
		printf("# ci: module %s does not load: %s\n", module, strerror(errno));
	if (fd >= 0)
		close(fd);
}

static void unload(const char *module)
{
	char path[300];

	snprintf(path, sizeof(path), "/sys/module/%s", module);
	if (!access(path, F_OK) && syscall(SYS_delete_module, module, O_NONBLOCK)) {
		printf("# ci: module %s does not unload: %s\n", module, strerror(errno));
		worst = 1;
	}
}

/* Prints what there is, with "# " in front of each line. */
static void copy(int fd)
{
	static int inside;	/* a line */
	char buf[4096];
	ssize_t n, i;

	while ((n = read(fd, buf, sizeof(buf))) > 0) {
		for (i = 0; i < n; i++) {
			if (!inside)
				fputs("# ", stdout);
			putchar(buf[i]);
			inside = buf[i] != '\n';
		}
	}
	/* The last line of a program may lack its end. */
	if (fd < 0 && inside) {
		putchar('\n');
		inside = 0;
	}
}

/* Until PROGRAM ends; what it leaves behind, with the pipe in its hands, does not count. */
static int run(char **argv)
{
	char path[300];
	int fds[2], status;
	pid_t pid;

	snprintf(path, sizeof(path), "./%s", argv[0]);
	if (pipe2(fds, O_CLOEXEC) || fcntl(fds[0], F_SETFL, O_NONBLOCK))
		return 125;
	pid = fork();
	if (pid < 0)
		return 125;
	if (!pid) {
		setpgid(0, 0);
		if (dup2(fds[1], 1) == 1 && dup2(fds[1], 2) == 2)
			execv(path, argv);
		_exit(127);
	}
	close(fds[1]);
	while (waitpid(pid, &status, WNOHANG) != pid) {
		struct pollfd p = { .fd = fds[0], .events = POLLIN };

		if (poll(&p, 1, 100) > 0 && !(p.revents & POLLIN))
			usleep(20000);
		copy(fds[0]);
	}
	copy(fds[0]);
	copy(-1);
	close(fds[0]);
	kill(-pid, SIGKILL);
	return WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
}

static void program(char **argv)
{
	int status;

	printf("# ---\n# running ./%s\n# ---\n", argv[0]);
	status = run(argv);
	programs++;
	if (!status) {
		printf("ok %d %s\n", programs, argv[0]);
	} else if (status == STATUS_SKIP) {
		printf("ok %d %s # SKIP\n", programs, argv[0]);
		skipped++;
	} else {
		printf("not ok %d %s # exit=%d\n", programs, argv[0], status);
		failed++;
	}
}

static void end(const char *category)
{
	int status = failed ? 1 : skipped ? STATUS_SKIP : 0;

	printf("1..%d\n", programs);
	printf("# ci: status %s %d %s\n", category, status, uptime());
	if (status == 1 || !worst)
		worst = status;
	programs = failed = skipped = 0;
}

int main(int argc, char **argv)
{
	static char *words[MAX_WORDS + 1];
	char *line = NULL;
	size_t size = 0;
	FILE *job;

	job = argc == 2 ? fopen(argv[1], "re") : NULL;
	if (!job) {
		fprintf(stderr, "usage: %s JOB\n", argv[0]);
		return 125;
	}
	setvbuf(stdout, NULL, _IOLBF, 0);
	while (getline(&line, &size, job) > 0) {
		int n = 0;
		char *word;

		for (word = strtok(line, " \n"); word && n < MAX_WORDS; word = strtok(NULL, " \n"))
			words[n++] = word;
		words[n] = NULL;
		if (n < 2) {
			if (!n)
				continue;
		} else if (!strcmp(words[0], "category")) {
			printf("# ci: category %s %s\nTAP version 13\n", words[1], uptime());
			continue;
		} else if (!strcmp(words[0], "load")) {
			load(words[1]);
			continue;
		} else if (!strcmp(words[0], "program")) {
			program(words + 1);
			continue;
		} else if (!strcmp(words[0], "unload")) {
			unload(words[1]);
			continue;
		} else if (!strcmp(words[0], "end")) {
			end(words[1]);
			continue;
		}
		printf("Bail out! %s: what is \"%s\"?\n", argv[1], words[0]);
		return 125;
	}
	return worst;
}
