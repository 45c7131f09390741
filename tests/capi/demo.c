/* demo VOICE FOLDER: the bundle that ships with the package. */
#include "host.h"

int main(int count, char **arguments)
{
    s2f_pipeline *pipeline;
    uint8_t *image;
    size_t size;
    if (count != 3)
        return 2;
    pipeline = open_cpu(NULL);
    image = draw(pipeline, read_voice(arguments[1]), 3, &size);
    write_file(arguments[2], "demo.rgb", image, size);
    EXPECT(S2F_OK, s2f_close(pipeline));
    return failures != 0;
}
