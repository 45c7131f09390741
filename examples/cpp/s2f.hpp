// libs2f for C++17: handles that close themselves, errors as exceptions, buffers of the right size. Header only.
//
// Exceptions stay on this side of the border: a progress function that throws ends the call, and what it threw comes out
// of `generate`. Threads: as in s2f.h. The structs are those of s2f.h, with their defaults set.
#ifndef S2F_HPP
#define S2F_HPP

#include <s2f.h>

#include <cstddef>
#include <cstdint>
#include <exception>
#include <functional>
#include <memory>
#include <optional>
#include <stdexcept>
#include <string>
#include <type_traits>
#include <utility>
#include <vector>

namespace s2f {

// What a call returned other than S2F_OK, with the library's words.
class Error : public std::runtime_error {
public:
    explicit Error(std::int32_t code) : std::runtime_error(s2f_last_error()), code_(code) {}
    std::int32_t code() const noexcept { return code_; }

private:
    std::int32_t code_;
};

inline void check(std::int32_t code)
{
    if (code != S2F_OK) {
        throw Error(code);
    }
}

struct Options : s2f_options {
    Options() { s2f_options_init(this); }
};

struct Request : s2f_request {
    Request() { s2f_request_init(this); }
};

struct StreamOptions : s2f_stream_options {
    StreamOptions() { s2f_stream_options_init(this); }
};

struct StreamState : s2f_stream_state {
    StreamState() { s2f_stream_state_init(this); }
};

struct Result : s2f_result {
    Result() { s2f_result_init(this); }
};

// `pixels`: RGB, rows from the top, result.width × result.height × 3 bytes.
struct Portrait {
    std::vector<std::uint8_t> pixels;
    Result result;
};

// Told (steps done, steps in all); true cancels. It may throw.
using Progress = std::function<bool(std::int32_t, std::int32_t)>;

namespace detail {

// The caller's request, with a function that C can call in place of the caller's and that keeps what it throws.
class Watched {
public:
    Watched(const Request &request, const Progress &progress) : request_(request), progress_(progress)
    {
        if (progress_) {
            request_.progress = &Watched::told;
            request_.progress_user = this;
        }
    }
    Watched(const Watched &) = delete;
    Watched &operator=(const Watched &) = delete;

    const s2f_request *get() const { return &request_; }

    void finish(std::int32_t code) const
    {
        if (thrown_) {
            std::rethrow_exception(thrown_);
        }
        check(code);
    }

private:
    static std::int32_t told(std::int32_t done, std::int32_t total, void *user) noexcept
    {
        auto *self = static_cast<Watched *>(user);
        try {
            return self->progress_(done, total) ? 1 : 0;
        } catch (...) {
            self->thrown_ = std::current_exception();
            return 1;
        }
    }

    Request request_;
    const Progress &progress_;
    std::exception_ptr thrown_;
};

struct CloseStream {
    void operator()(s2f_stream *stream) const noexcept { s2f_stream_close(stream); }
};

struct ClosePipeline {
    void operator()(s2f_pipeline *pipeline) const noexcept { s2f_close(pipeline); }
};

template <class Sample> constexpr bool is_float()
{
    static_assert(std::is_same_v<Sample, float> || std::is_same_v<Sample, std::int16_t>, "float or int16_t samples");
    return std::is_same_v<Sample, float>;
}

} // namespace detail

// A conversation: samples in, newer portraits out. Made by Pipeline::stream.
class Stream {
public:
    // `frames`: samples per channel, interleaved; float or int16_t.
    template <class Sample> void push(const Sample *pcm, std::size_t frames)
    {
        if constexpr (detail::is_float<Sample>()) {
            check(s2f_stream_push(stream_.get(), pcm, frames));
        } else {
            check(s2f_stream_push_i16(stream_.get(), pcm, frames));
        }
    }

    // The newest portrait, if it is newer than that of the last call.
    std::optional<Portrait> poll()
    {
        std::int32_t fresh = 0;
        check(s2f_stream_poll(stream_.get(), next_.pixels.data(), next_.pixels.size(), &next_.result, &fresh));
        return fresh != 0 ? std::optional<Portrait>(next_) : std::nullopt;
    }

    // What it has heard and drawn.
    StreamState info() const
    {
        StreamState state;
        check(s2f_stream_info(stream_.get(), &state));
        return state;
    }

    // No more samples come: the portrait of all the speech there was. `timeout_ms`: 0 for no limit.
    Portrait finish(std::uint32_t timeout_ms = 0)
    {
        check(s2f_stream_finish(stream_.get(), timeout_ms, next_.pixels.data(), next_.pixels.size(), &next_.result));
        return next_;
    }

    s2f_stream *get() const noexcept { return stream_.get(); }

private:
    friend class Pipeline;
    Stream(s2f_stream *stream, std::size_t bytes) : stream_(stream) { next_.pixels.resize(bytes); }

    std::unique_ptr<s2f_stream, detail::CloseStream> stream_;
    Portrait next_;
};

// An open bundle. Closes itself; streams should go before it.
class Pipeline {
public:
    // `bundle`: its folder, nullptr for the shipped demo.
    explicit Pipeline(const char *bundle = nullptr, const Options &options = {})
    {
        s2f_pipeline *opened = nullptr;
        check(s2f_open(bundle, &options, &opened));
        pipeline_.reset(opened);
    }

    // Width, height and bytes_needed of a portrait.
    Result info() const
    {
        Result result;
        check(s2f_info(get(), &result));
        return result;
    }

    // `frames`: samples per channel, interleaved; float or int16_t.
    template <class Sample>
    Portrait generate(const Sample *pcm, std::size_t frames, std::int32_t sample_rate, std::int32_t channels,
                      const Request &request = {}, const Progress &progress = {}) const
    {
        Portrait drawn = blank();
        detail::Watched watched(request, progress);
        std::uint8_t *image = drawn.pixels.data();
        const std::size_t size = drawn.pixels.size();
        if constexpr (detail::is_float<Sample>()) {
            watched.finish(s2f_generate(get(), pcm, frames, sample_rate, channels, watched.get(), image, size,
                                        &drawn.result));
        } else {
            watched.finish(s2f_generate_i16(get(), pcm, frames, sample_rate, channels, watched.get(), image, size,
                                            &drawn.result));
        }
        return drawn;
    }

    Portrait generate_file(const std::string &path, const Request &request = {}, const Progress &progress = {}) const
    {
        Portrait drawn = blank();
        detail::Watched watched(request, progress);
        watched.finish(s2f_generate_file(get(), path.c_str(), watched.get(), drawn.pixels.data(), drawn.pixels.size(),
                                         &drawn.result));
        return drawn;
    }

    // The bytes of a PNG file that says that the portrait was generated.
    std::vector<std::uint8_t> encode_png(const Portrait &portrait) const
    {
        std::size_t size = 0;
        std::vector<std::uint8_t> png(portrait.result.bytes_needed + 65536); // always enough, see s2f.h
        check(s2f_encode_png(get(), portrait.pixels.data(), &portrait.result, png.data(), png.size(), &size));
        png.resize(size);
        return png;
    }

    Stream stream(const StreamOptions &options) const
    {
        const std::size_t bytes = info().bytes_needed;
        s2f_stream *opened = nullptr;
        check(s2f_stream_open(get(), &options, &opened));
        return Stream(opened, bytes);
    }

    s2f_pipeline *get() const noexcept { return pipeline_.get(); }

private:
    Portrait blank() const
    {
        Portrait portrait;
        portrait.result = info();
        portrait.pixels.resize(portrait.result.bytes_needed);
        return portrait;
    }

    std::unique_ptr<s2f_pipeline, detail::ClosePipeline> pipeline_;
};

} // namespace s2f

#endif
