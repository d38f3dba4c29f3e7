#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| msm_fastpath::fuzzing::frame(data));
