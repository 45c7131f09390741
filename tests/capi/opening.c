/* opening BUNDLE TIMES: what s2f_open says, "code<tab>text" per try. */
#include "host.h"

int main(int count, char **arguments)
{
    if (count != 3)
        return 2;
    for (int i = 0; i < atoi(arguments[2]); i++) {
        s2f_pipeline *pipeline;
        const int32_t code = s2f_open(arguments[1], NULL, &pipeline);
        printf("%d\t%s\n", (int)code, s2f_last_error());
        CHECK((code == S2F_OK) == (pipeline != NULL));
        if (code == S2F_OK)
            EXPECT(S2F_OK, s2f_close(pipeline));
        fflush(stdout);
    }
    return failures != 0;
}
