// Several faces of one voice: a voice does not determine a face, so a program that shows one should show more.
//
//     faces IN OUT_PREFIX [COUNT]      writes OUT_PREFIX-0.png, OUT_PREFIX-1.png, …
#include "s2f.hpp"

#include <cstdlib>
#include <exception>
#include <filesystem>
#include <fstream>
#include <iostream>
#include <string>
#include <vector>

namespace {

// Whole or not at all: a new file, then renamed.
void write_file(const std::string &path, const std::vector<std::uint8_t> &bytes)
{
    const std::string temporary = path + ".tmp";
    std::ofstream file;
    file.exceptions(std::ios::failbit | std::ios::badbit);
    file.open(temporary, std::ios::binary);
    file.write(reinterpret_cast<const char *>(bytes.data()), static_cast<std::streamsize>(bytes.size()));
    file.close();
    std::filesystem::rename(temporary, path);
}

void draw(const std::string &speech, const std::string &prefix, int count)
{
    const s2f::Pipeline pipeline;
    for (int seed = 0; seed < count; seed++) {
        s2f::Request request;
        request.seed = seed;
        const s2f::Portrait portrait = pipeline.generate_file(speech, request);
        const std::string path = prefix + "-" + std::to_string(seed) + ".png";
        write_file(path, pipeline.encode_png(portrait));
        std::cout << path << "  " << portrait.result.total_ms << " ms\n";
    }
}

} // namespace

int main(int argc, char **argv)
{
    const int count = argc == 4 ? std::atoi(argv[3]) : 4;
    if (argc < 3 || argc > 4 || count < 1) {
        std::cerr << "Usage: faces IN OUT_PREFIX [COUNT]\n"
                     "Plausible portraits drawn by a model. They show no real person and identify nobody; not for\n"
                     "surveillance, identification or decisions about people.\n";
        return 2;
    }
    try {
        draw(argv[1], argv[2], count);
    } catch (const s2f::Error &error) {
        std::cerr << "faces: error [" << error.code() << "]: " << error.what() << '\n';
        return error.code();
    } catch (const std::exception &error) {
        std::cerr << "faces: " << error.what() << '\n';
        return S2F_OUTPUT_UNWRITABLE;
    }
    return 0;
}
