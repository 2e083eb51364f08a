//! Every target, for a bounded number of inputs that are the same in every run; what is allocated is bounded by what is sent.
//!
//! One test, because the allocator counts for the whole process.

use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use haar_api::schema::{Operation, Protocol, ServiceModel};
use haar_fuzz::{TARGETS, decode, generate, head, mutate};
use rand::SeedableRng;
use rand::rngs::StdRng;

/// Counts the bytes that are allocated, and the most that ever were.
struct Counting;

static NOW: AtomicUsize = AtomicUsize::new(0);
static MOST: AtomicUsize = AtomicUsize::new(0);

fn grow(bytes: usize) {
    let now = NOW.fetch_add(bytes, Ordering::Relaxed) + bytes;
    MOST.fetch_max(now, Ordering::Relaxed);
}

// SAFETY: every call is passed on to the system's allocator as it came.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        grow(layout.size());
        // SAFETY: the caller's promises are those that the system's allocator asks for.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        NOW.fetch_sub(layout.size(), Ordering::Relaxed);
        // SAFETY: as above.
        unsafe { System.dealloc(pointer, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// The most bytes that `work` had allocated at one time, and how long it took.
fn measured(work: impl FnOnce()) -> (usize, Duration) {
    let before = NOW.load(Ordering::Relaxed);
    MOST.store(before, Ordering::Relaxed);
    let begin = Instant::now();
    work();
    (MOST.load(Ordering::Relaxed) - before, begin.elapsed())
}

/// Inputs of each target, unless `HAAR_FUZZ_RUNS` says how many.
const RUNS: usize = 3000;

fn runs() -> usize {
    std::env::var("HAAR_FUZZ_RUNS").map_or(RUNS, |runs| runs.parse().expect("HAAR_FUZZ_RUNS is a number"))
}

fn operation(model: &'static ServiceModel, name: &str) -> &'static Operation {
    model.operations.iter().find(|operation| operation.route.name == name).unwrap()
}

/// Well-formed requests of a target, from which the others are made.
fn seeds(target: &str, rng: &mut StdRng) -> Vec<Vec<u8>> {
    let echo = |model: &'static ServiceModel| operation(model, "Echo").input;
    let mut seeds: Vec<Vec<u8>> = Vec::new();
    for _ in 0..40 {
        match target {
            "form" => {
                for (model, protocol) in
                    [(&haar_echo::ec2::MODEL, Protocol::Ec2), (&haar_echo::query::MODEL, Protocol::Query)]
                {
                    let value = generate::value(rng, echo(model));
                    seeds.push(generate::form(protocol, &value, echo(model)).into_bytes());
                }
            }
            "json" => {
                let value = generate::value(rng, echo(&haar_echo::json11::MODEL));
                seeds.push(generate::json(&value, echo(&haar_echo::json11::MODEL)).to_string().into_bytes());
            }
            "rest" => {
                let value = generate::value(rng, echo(&haar_echo::rest::MODEL));
                let body = generate::json(&value, echo(&haar_echo::rest::MODEL));
                seeds.push(format!("POST /echo\nContent-Type: application/json\n\n{body}").into_bytes());
            }
            _ => {}
        }
    }
    let more: &[&str] = match target {
        "form" => &[
            "Name=abcd&Items.1.Id=x&Items.2.Count=3",
            "Name=abcd&Items.member.1.Id=x&Labels.entry.1.key=abc&Labels.entry.1.value=x",
            "ClientToken=x&Always=true",
        ],
        "json" => &[
            r#"{"Name":"abcd","Items":[{"Id":"x","Count":3}],"Labels":{"abc":"x"},"Fraction":0.5}"#,
            r#"{"ClientToken":"x","Always":true}"#,
            "EchoJson11.Echo\n",
        ],
        "rest" => &[
            "PUT /places/label/a/b%2Fc/end?text=a&number=1&flag=true&when=2026-01-01T00%3A00%3A00Z&texts=a&texts=b&free=1\nX-Text: a\nX-Number: 5\nX-Flag: true\nX-When: Thu, 01 Jan 1970 00:00:00 GMT\nX-Texts: a, \"b, c\", d\nX-Meta-One: 1\n\n{\"Body\":{\"Text\":\"x\"}}",
            "POST /stream?status=201\nContent-Type: image/png\n\nbytes",
            "POST /wrapped/name\n\n{\"Text\":\"x\",\"Numbers\":[1,2]}",
            "POST /text\n\ntext",
            "GET /once?List=ALL\n",
            "DELETE /nothing\n",
        ],
        "signature" => &[
            "GET /?Action=ListUsers&Version=2010-05-08\nHost: iam.amazonaws.com\nContent-Type: application/x-www-form-urlencoded; charset=utf-8\nX-Amz-Date: 20150830T123600Z\nAuthorization: AWS4-HMAC-SHA256 Credential=AKIDEXAMPLE/20150830/us-east-1/iam/aws4_request, SignedHeaders=content-type;host;x-amz-date, Signature=5d672d79c15b13162d9279b0855cfba6789a8edb4c82c400e06b5924a6f2b5d7\n\nbody",
            "GET /a//b/../c?X-Amz-Algorithm=AWS4-HMAC-SHA256&X-Amz-Credential=AKIDEXAMPLE%2F20150830%2Fus-east-1%2Fservice%2Faws4_request&X-Amz-Date=20150830T123600Z&X-Amz-SignedHeaders=host&X-Amz-Expires=3600&X-Amz-Security-Token=abc&X-Amz-Signature=00\nHost: example.amazonaws.com\n",
            "POST /\nHost: h\nDate: Sun, 30 Aug 2015 12:36:00 GMT\nX-Amz-Content-Sha256: UNSIGNED-PAYLOAD\nAuthorization: AWS4-HMAC-SHA256 Credential=a/20150830/r/s3/aws4_request,SignedHeaders=host,Signature=0\n",
        ],
        "text" => &[
            "plain",
            "<a>&amp;]]>\"'",
            "\0\u{1}\u{8}\t\n\r\u{1f}\u{7f}\u{85}\u{fffd}\u{fffe}\u{ffff}😀",
            "\r\n\n\r",
        ],
        other => panic!("no seeds of {other}"),
    };
    seeds.extend(more.iter().map(|seed| seed.as_bytes().to_vec()));
    seeds
}

/// What is decoded is what was said.
fn well_formed_requests_survive(rng: &mut StdRng) {
    for _ in 0..runs() / 4 {
        for (model, protocol) in
            [(&haar_echo::ec2::MODEL, Protocol::Ec2), (&haar_echo::query::MODEL, Protocol::Query)]
        {
            let shape = operation(model, "Echo").input;
            let value = generate::value(rng, shape);
            let body = format!(
                "Action=Echo&Version={}&{}",
                model.api_version,
                generate::form(protocol, &value, shape)
            );
            let decoded = decode(model, &head("POST", "/", &[]), body.as_bytes());
            assert_eq!(decoded.map(|(_, value)| value), Ok(value), "{body}");
        }
        for model in [&haar_echo::json10::MODEL, &haar_echo::json11::MODEL, &haar_echo::rest::MODEL] {
            let shape = operation(model, "Echo").input;
            let value = generate::value(rng, shape);
            let body = generate::json(&value, shape).to_string();
            let parts = match model.protocol {
                Protocol::RestJson => head("POST", "/echo", &[]),
                _ => head("POST", "/", &[("x-amz-target", &format!("{}.Echo", model.target_prefix))]),
            };
            let decoded = decode(model, &parts, body.as_bytes());
            assert_eq!(decoded.map(|(_, value)| value), Ok(value), "{body}");
        }
    }
}

/// The bodies that ask for the most, as long as the endpoint takes them.
fn the_worst_bodies_are_bounded() {
    let fill = |piece: &str, length: usize| piece.repeat(length / piece.len());
    let megabyte = 1 << 20;
    // As many parameters as a request may have.
    let numbered = |name: &str, value: &str| -> String {
        (1..20_000).map(|index| format!("{name}.{index}{value}&")).collect()
    };
    let deep: String =
        (0..).map(|n: u32| format!("{n:x}{}=&", ".a".repeat(31))).take(megabyte / 70).collect();
    let forms = [
        deep,
        fill("a&", megabyte),
        fill("a=b&", megabyte),
        fill("%", megabyte),
        numbered("Inners", ".Text="),
        numbered("Inners.member", ".Text="),
        numbered("Texts", "="),
        numbered("Filter", ".Inner.Inner.Inner.Text="),
        numbered("Filter", ".Numbers.1=1"),
        numbered("Map.entry", ".key=1"),
        format!("{}=1", fill("Inner.", megabyte)),
        "Texts.999999999=a&Texts.member.999999999=a".into(),
        format!("Text={}", fill("x", megabyte - 8)),
    ];
    let json = [
        fill("[", 8 * megabyte),
        fill("{\"Inner\":", 8 * megabyte),
        format!("{{\"Inners\":[{}{{}}]}}", fill("{},", 8 * megabyte - 20)),
        format!("{{\"Nested\":[{}[]]}}", fill("[],", 8 * megabyte - 20)),
        format!("{{\"Free\":[{}0]}}", fill("0,", 8 * megabyte - 20)),
        format!("{{\"Free\":[{}{{}}]}}", fill("{\"a\":0},", 8 * megabyte - 30)),
        format!("{{\"Unicorn\":[{}0]}}", fill("0,", 8 * megabyte - 20)),
        format!("{{\"Text\":\"{}\"}}", fill("\\u0000", 8 * megabyte - 20)),
        format!("{{\"Texts\":[{}0]}}", fill("\"\",", 8 * megabyte - 20)),
    ];
    let form = head("POST", "/?Action=Echo", &[]);
    let rest = head("POST", "/echo", &[]);
    let forms = forms
        .iter()
        .flat_map(|body| [(&haar_echo::ec2::MODEL, &form, body), (&haar_echo::query::MODEL, &form, body)]);
    for (model, head, body) in forms.chain(json.iter().map(|body| (&haar_echo::rest::MODEL, &rest, body))) {
        assert!(body.len() <= model.max_body);
        let (bytes, time) = measured(|| drop(decode(model, head, body.as_bytes())));
        let start: String = body.chars().take(40).collect();
        assert!(bytes < 64 * megabyte, "{}: {} MiB for {start}…", model.name, bytes / megabyte);
        assert!(time < Duration::from_secs(20), "{}: {time:?} for {start}…", model.name);
    }
}

#[test]
fn no_input_panics_or_allocates_without_bound() {
    let mut rng = StdRng::seed_from_u64(4566);
    well_formed_requests_survive(&mut rng);
    the_worst_bodies_are_bounded();
    for (name, target) in TARGETS {
        let seeds = seeds(name, &mut rng);
        for seed in &seeds {
            target(seed);
        }
        for _ in 0..runs() {
            let input = mutate::mutate(&mut rng, &seeds);
            let (bytes, time) = measured(|| target(&input));
            let shown = String::from_utf8_lossy(&input);
            assert!(bytes < (1 << 20) + 1000 * input.len(), "{name}: {bytes} bytes for {shown:?}");
            assert!(time < Duration::from_secs(5), "{name}: {time:?} for {shown:?}");
        }
    }
}
