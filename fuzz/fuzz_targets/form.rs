#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| haar_fuzz::form(data));
