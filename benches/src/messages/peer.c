/* One rank of an MPI in `cargo xtask bench messages`: does what benches/src/messages_rank/main.rs does, in the same order and as
 * often, and prints the same lines from rank 0: a case, and nanoseconds. Built with each MPI's own compiler. */
#include <mpi.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

static double now(void) {
    struct timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    return (double)time.tv_sec * 1e9 + (double)time.tv_nsec;
}

static int rank;

/* Half of the time that a message and its answer take. */
static void latency(size_t size, int times) {
    char *data = calloc(size, 1);
    double start = 0;
    for (int round = -times / 10 - 1; round < times; round++) {
        if (round == 0) {
            start = now();
        }
        if (rank == 0) {
            MPI_Send(data, (int)size, MPI_BYTE, 1, 1, MPI_COMM_WORLD);
            MPI_Recv(data, (int)size, MPI_BYTE, 1, 1, MPI_COMM_WORLD, MPI_STATUS_IGNORE);
        } else {
            MPI_Recv(data, (int)size, MPI_BYTE, 0, 1, MPI_COMM_WORLD, MPI_STATUS_IGNORE);
            MPI_Send(data, (int)size, MPI_BYTE, 0, 1, MPI_COMM_WORLD);
        }
    }
    if (rank == 0) {
        printf("latency/%zu %.1f\n", size, (now() - start) / times / 2);
    }
    free(data);
}

/* The time of a message in a stream: a window of them is started, waited for, and answered. */
static void stream(size_t size, int window, int times) {
    MPI_Request *requests = calloc((size_t)window, sizeof *requests);
    char *data = calloc(size, (size_t)window);
    char answer = 0;
    double start = 0;
    for (int round = -times / 10 - 1; round < times; round++) {
        if (round == 0) {
            start = now();
        }
        for (int number = 0; number < window; number++) {
            char *place = data + size * (size_t)number;
            if (rank == 0) {
                MPI_Isend(place, (int)size, MPI_BYTE, 1, 2, MPI_COMM_WORLD, &requests[number]);
            } else {
                MPI_Irecv(place, (int)size, MPI_BYTE, 0, 2, MPI_COMM_WORLD, &requests[number]);
            }
        }
        MPI_Waitall(window, requests, MPI_STATUSES_IGNORE);
        if (rank == 0) {
            MPI_Recv(&answer, 1, MPI_BYTE, 1, 3, MPI_COMM_WORLD, MPI_STATUS_IGNORE);
        } else {
            MPI_Send(&answer, 1, MPI_BYTE, 0, 3, MPI_COMM_WORLD);
        }
    }
    if (rank == 0) {
        printf("stream/%zu %.1f\n", size, (now() - start) / times / window);
    }
    free(data);
    free(requests);
}

static void all_reduce(size_t size, int times) {
    int count = (int)(size / sizeof(double));
    double *data = calloc((size_t)count, sizeof *data);
    double start = 0;
    for (int round = -times / 10 - 1; round < times; round++) {
        if (round == 0) {
            MPI_Barrier(MPI_COMM_WORLD);
            start = now();
        }
        MPI_Allreduce(MPI_IN_PLACE, data, count, MPI_DOUBLE, MPI_SUM, MPI_COMM_WORLD);
    }
    if (rank == 0) {
        printf("all_reduce/%zu %.1f\n", size, (now() - start) / times);
    }
    free(data);
}

static void barrier(int times) {
    double start = 0;
    for (int round = -times / 10 - 1; round < times; round++) {
        if (round == 0) {
            start = now();
        }
        MPI_Barrier(MPI_COMM_WORLD);
    }
    if (rank == 0) {
        printf("barrier/0 %.1f\n", (now() - start) / times);
    }
}

/* Arguments: case, bytes, window, times; as often as there are cases. */
int main(int count, char **words) {
    /* Nothing else would end a rank that polls for one that is gone. */
    alarm(120);
    MPI_Init(&count, &words);
    MPI_Comm_rank(MPI_COMM_WORLD, &rank);
    for (int at = 1; at + 3 < count; at += 4) {
        size_t size = strtoull(words[at + 1], NULL, 10);
        int window = atoi(words[at + 2]), times = atoi(words[at + 3]);
        MPI_Barrier(MPI_COMM_WORLD);
        if (strcmp(words[at], "latency") == 0) {
            latency(size, times);
        } else if (strcmp(words[at], "stream") == 0) {
            stream(size, window, times);
        } else if (strcmp(words[at], "all_reduce") == 0) {
            all_reduce(size, times);
        } else if (strcmp(words[at], "barrier") == 0) {
            barrier(times);
        } else {
            fprintf(stderr, "no case \"%s\"\n", words[at]);
            MPI_Abort(MPI_COMM_WORLD, 2);
        }
    }
    MPI_Finalize();
    return 0;
}
