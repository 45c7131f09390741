/* border BUNDLE VOICE CALLS FOLDER: what the way through C costs. Calls from C and Python take turns, a hundred each,
 * in one process. Of each its time beyond the total_ms that is counted inside, in microseconds, one per line, to
 * FOLDER/c.txt and FOLDER/python.txt. Prints the resident memory in KiB after a tenth of the calls and at the end. */
#include "inner.h"

#include <time.h>
#include <unistd.h>

static double now_ms(void)
{
    struct timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    return (double)time.tv_sec * 1e3 + (double)time.tv_nsec / 1e6;
}

static long resident(void)
{
    long pages = 0;
    FILE *file = fopen("/proc/self/statm", "r");
    if (file == NULL || fscanf(file, "%*d %ld", &pages) != 1)
        exit(3);
    fclose(file);
    return pages * (sysconf(_SC_PAGESIZE) / 1024);
}

static const char prepare[] = "import time, numpy, runtime\n"
                              "pipeline = runtime.load('%s', device='cpu', threads=1)\n"
                              "voice, spent = numpy.fromfile('%s', numpy.float32), []\n"
                              "def draw():\n"
                              "    for seed in range(100):\n"
                              "        begin = time.perf_counter()\n"
                              "        portrait = pipeline.generate((voice, 16000), seed=seed, progress=lambda *_: 0)\n"
                              "        wall = time.perf_counter() - begin\n"
                              "        spent.append(wall * 1e6 - portrait.timings.total * 1e3)\n";
static const char finish[] = "with open('%s/python.txt', 'w') as file:\n"
                             "    file.write('\\n'.join(map(str, spent)))\n";

static int32_t quiet(int32_t done, int32_t total, void *user)
{
    (void)done;
    (void)total;
    (void)user;
    return 0;
}

static void from_c(s2f_pipeline *pipeline, voice speech, FILE *file)
{
    static uint8_t image[1 << 20];
    s2f_request request;
    s2f_result result;
    s2f_request_init(&request);
    s2f_result_init(&result);
    request.progress = quiet;
    for (request.seed = 0; request.seed < 100; request.seed++) {
        const double begin = now_ms();
        EXPECT(S2F_OK, s2f_generate(pipeline, speech.pcm, speech.frames, RATE, 1, &request, image, sizeof(image),
                                    &result));
        fprintf(file, "%f\n", (now_ms() - begin - result.total_ms) * 1e3);
    }
}

int main(int count, char **arguments)
{
    static char text[8192];
    s2f_pipeline *pipeline;
    voice speech;
    FILE *file;
    int hundreds;
    if (count != 5 || (hundreds = atoi(arguments[3]) / 100) < 10)
        return 2;
    speech = read_voice(arguments[2]);
    pipeline = open_with_python(arguments[1], arguments[4]);
    snprintf(text, sizeof(text), prepare, arguments[1], arguments[2]);
    python(text);
    snprintf(text, sizeof(text), "%s/c.txt", arguments[4]);
    file = fopen(text, "w");
    for (int i = 0; i < hundreds; i++) {
        from_c(pipeline, speech, file);
        python("draw()");
        if (i == hundreds / 10 || i == hundreds - 1)
            printf("%ld\n", resident());
    }
    fclose(file);
    snprintf(text, sizeof(text), finish, arguments[4]);
    python(text);
    EXPECT(S2F_OK, s2f_close(pipeline));
    return failures != 0;
}
