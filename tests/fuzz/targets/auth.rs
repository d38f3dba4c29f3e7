#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| msm_rtsp::fuzzing::auth(std::time::Instant::now(), data));
