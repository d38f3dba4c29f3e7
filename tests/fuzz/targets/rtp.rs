#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| msm_media::rtp::fuzz(data));
