/* loops LIBRARY BUNDLE VOICE COUNT local|global: dlopen, open, generate, close, dlclose, again and again. Prints the
 * resident memory in KiB after the first round, after a tenth of the rounds, and at the end. */
#define _GNU_SOURCE
#include <s2f.h>

#include <dlfcn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define FUNCTION(name) __typeof__(&name) name##_ = 0; find(library, #name, &name##_)

static void find(void *library, const char *name, void *pointer)
{
    void *found = dlsym(library, name);
    if (found == NULL)
        exit(3);
    memcpy(pointer, &found, sizeof(found));
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

static int round_trip(const char *path, int flag, const char *bundle, const float *pcm, size_t frames, uint8_t *image,
                      size_t size)
{
    void *library = dlopen(path, RTLD_NOW | flag);
    s2f_pipeline *pipeline = NULL;
    s2f_options options;
    int32_t code;
    if (library == NULL) {
        printf("%s\n", dlerror());
        return 1;
    }
    FUNCTION(s2f_open);
    FUNCTION(s2f_generate);
    FUNCTION(s2f_close);
    FUNCTION(s2f_options_init);
    FUNCTION(s2f_last_error);
    s2f_options_init_(&options);
    options.device = "cpu";
    options.threads = 1;
    code = s2f_open_(bundle, &options, &pipeline);
    if (code == S2F_OK)
        code = s2f_generate_(pipeline, pcm, frames, 16000, 1, NULL, image, size, NULL);
    if (code == S2F_OK)
        code = s2f_close_(pipeline);
    if (code != S2F_OK)
        printf("%d: %s\n", (int)code, s2f_last_error_());
    return dlclose(library) != 0 || code != S2F_OK;
}

int main(int count, char **arguments)
{
    static float pcm[1 << 20];
    static uint8_t first[1 << 16], image[1 << 16];
    size_t frames;
    FILE *file;
    int rounds, flag;
    if (count != 6 || (file = fopen(arguments[3], "rb")) == NULL)
        return 2;
    frames = fread(pcm, sizeof(float), sizeof(pcm) / sizeof(float), file);
    fclose(file);
    rounds = atoi(arguments[4]);
    flag = strcmp(arguments[5], "local") == 0 ? RTLD_LOCAL : RTLD_GLOBAL;
    for (int i = 0; i < rounds; i++) {
        if (round_trip(arguments[1], flag, arguments[2], pcm, frames, i == 0 ? first : image, sizeof(image)) != 0)
            return 1;
        if (i > 0 && memcmp(first, image, sizeof(image)) != 0)
            return 1;
        if (i == 0 || i == rounds / 10 || i == rounds - 1)
            printf("%ld\n", resident());
    }
    return 0;
}
