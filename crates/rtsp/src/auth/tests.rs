use std::time::{Duration, Instant};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use proptest::prelude::*;

use super::*;
use crate::message::Method;

/// The zero of the tests' time.
#[expect(clippy::disallowed_methods, reason = "an Instant cannot be made otherwise; only differences matter")]
fn start() -> Instant {
    Instant::now()
}

const URI: &str = "rtsp://h:8554/cam";

fn realm(digest: DigestOffer) -> ServerAuth {
    ServerAuth {
        realm: "mesh".to_owned(),
        accounts: vec![Credentials::new("viewer", "s3cret"), Credentials::new("other", "x")],
        digest,
        basic: BasicPolicy::Refuse,
    }
}

fn request<'a>(method: &'a Method, uri: &'a str, authorization: Option<&'a str>) -> AuthRequest<'a> {
    AuthRequest { method, uri, authorization }
}

fn challenges(verdict: Verdict) -> Vec<String> {
    match verdict {
        Verdict::Unauthorized { challenges, .. } => challenges,
        Verdict::Granted { user } => panic!("{user} was granted"),
    }
}

/// RFC 2617 section 3.5.
#[test]
fn the_example_of_rfc_2617_comes_out() {
    let credentials = Credentials::new("Mufasa", "Circle Of Life");
    let input = DigestInput {
        algorithm: Algorithm::Md5,
        realm: "testrealm@host.com",
        nonce: "dcd98b7102dd2f0e8b11d0f600bfb0c093",
        method: "GET",
        uri: "/dir/index.html",
        qop: Some(("00000001", "0a4f113b")),
    };
    assert_eq!(digest_response(&credentials, input), "6629fae49393a05397450978507c4ef1");
    // RFC 2069 form, as GStreamer and many cameras use it.
    let input = DigestInput { qop: None, ..input };
    assert_eq!(digest_response(&credentials, input), "670fd8c2df070c60b045671b8b24ff02");
}

/// RFC 7616 section 3.9.1.
#[test]
fn the_examples_of_rfc_7616_come_out() {
    let credentials = Credentials::new("Mufasa", "Circle of Life");
    let input = DigestInput {
        algorithm: Algorithm::Md5,
        realm: "http-auth@example.org",
        nonce: "7ypf/xlj9XXwfDPEoM4URrv/xwf94BcCAzFZH4GiTo0v",
        method: "GET",
        uri: "/dir/index.html",
        qop: Some(("00000001", "f2/wE4q74E6zIJEtWaHKaf5wv/H5QzzpXusqGemxURZJ")),
    };
    assert_eq!(digest_response(&credentials, input), "8ca523f5e9506fed4657c9700eebdbec");
    let input = DigestInput { algorithm: Algorithm::Sha256, ..input };
    assert_eq!(
        digest_response(&credentials, input),
        "753927fa0e85d155564e2e272a28d1802ca10daf4496794697cf8db5856cb6c1"
    );
}

/// RTSP-36, case 13.
#[test]
fn sha_256_is_offered_before_md5_and_basic_only_if_allowed() {
    let now = start();
    let ask = |auth: &ServerAuth| {
        challenges(ConnAuth::new().verify(now, auth, request(&Method::Describe, URI, None), [7; 16]))
    };
    let md5 = ask(&realm(DigestOffer::Md5));
    assert_eq!(md5.len(), 1);
    assert_eq!(
        md5[0],
        "Digest realm=\"mesh\", nonce=\"07070707070707070707070707070707\", algorithm=MD5, qop=\"auth\""
    );
    let both = ask(&ServerAuth { basic: BasicPolicy::Allow, ..realm(DigestOffer::Sha256ThenMd5) });
    assert!(both[0].contains("algorithm=SHA-256") && both[1].contains("algorithm=MD5"), "{both:?}");
    assert_eq!(both[2], "Basic realm=\"mesh\"");
}

/// Our client against our server, for both digests; the uri forms of RTSP-37 and what they must not allow.
#[test]
fn every_uri_form_of_the_rule_is_accepted_and_no_other() {
    let now = start();
    let setup = "rtsp://h:8554/cam?x=1/trackID=1";
    for (method, request_uri, digest_uri, wanted) in [
        (Method::Describe, "rtsp://h:8554/cam", "rtsp://h:8554/cam", true),
        (Method::Describe, "rtsp://h:8554/cam", "/cam", true),
        (Method::Describe, "rtsp://h:8554/cam?x=1", "/cam?x=1", true),
        (Method::Describe, "rtsp://h:8554/cam?x=1", "/cam", false),
        (Method::Describe, "rtsp://h:8554/cam", "rtsp://other:8554/cam", false),
        (Method::Describe, "rtsp://h:8554/cam", "/other", false),
        (Method::Describe, "rtsp://h:8554/cam", "*", false),
        (Method::Setup, setup, setup, true),
        (Method::Setup, setup, "/cam?x=1/trackID=1", true),
        (Method::Setup, setup, "rtsp://h:8554/cam?x=1", true),
        (Method::Setup, setup, "rtsp://h:8554/cam?x=1/", true),
        (Method::Setup, setup, "rtsp://h:8554/cam?x=1/trackID=0", false),
        (Method::Setup, "rtsp://h/cam/streamid=0", "rtsp://h/cam", true),
        (Method::Setup, "rtsp://h/cam/streamid=0", "rtsp://h/", false),
        (Method::Play, "rtsp://h/cam/", "rtsp://h/cam", true),
        (Method::Play, "rtsp://h/cam/trackID=1", "rtsp://h/cam", false),
        (Method::Options, "*", "*", true),
    ] {
        for offer in [DigestOffer::Md5, DigestOffer::Sha256ThenMd5] {
            let auth = realm(offer);
            let mut server = ConnAuth::new();
            let offered = challenges(server.verify(now, &auth, request(&method, request_uri, None), [1; 16]));
            let mut client = ClientAuth::new(Some(auth.accounts[0].clone()), BasicPolicy::Refuse);
            client.handle_unauthorized(offered.iter().map(String::as_str)).unwrap();
            let value = client.authorization(&method, digest_uri, [9; 8]).unwrap();
            let verdict = server.verify(now, &auth, request(&method, request_uri, Some(&value)), [2; 16]);
            let granted = verdict == Verdict::Granted { user: "viewer".to_owned() };
            assert_eq!(granted, wanted, "{method} {request_uri} with {digest_uri}");
        }
    }
}

#[test]
fn a_digest_without_qop_is_accepted() {
    let now = start();
    let auth = realm(DigestOffer::Md5);
    let mut server = ConnAuth::new();
    challenges(server.verify(now, &auth, request(&Method::Describe, URI, None), [3; 16]));
    let nonce = "03".repeat(16);
    let input = DigestInput {
        algorithm: Algorithm::Md5,
        realm: "mesh",
        nonce: &nonce,
        method: "DESCRIBE",
        uri: URI,
        qop: None,
    };
    let response = digest_response(&auth.accounts[0], input).to_ascii_uppercase();
    let value = format!(
        "Digest username=\"viewer\", realm=\"mesh\", nonce=\"{nonce}\", uri=\"{URI}\", response=\"{response}\""
    );
    let verdict = server.verify(now, &auth, request(&Method::Describe, URI, Some(&value)), [0; 16]);
    assert_eq!(verdict, Verdict::Granted { user: "viewer".to_owned() });
    // The same digest for another method is worth nothing.
    let verdict = server.verify(now, &auth, request(&Method::Setup, URI, Some(&value)), [0; 16]);
    assert!(matches!(verdict, Verdict::Unauthorized { failed: Some(_), .. }));
}

/// RTSP-37: an old nonce is not a failure.
#[test]
fn an_expired_nonce_is_stale_and_the_client_goes_on_with_the_new_one() {
    let t0 = start();
    let auth = realm(DigestOffer::Md5);
    let mut server = ConnAuth::new();
    let mut client = ClientAuth::new(Some(auth.accounts[0].clone()), BasicPolicy::Refuse);
    let first = challenges(server.verify(t0, &auth, request(&Method::Describe, URI, None), [1; 16]));
    client.handle_unauthorized(first.iter().map(String::as_str)).unwrap();
    let mut ask = |client: &mut ClientAuth, at, nonce| {
        let value = client.authorization(&Method::Describe, URI, [5; 8]).unwrap();
        server.verify(at, &auth, request(&Method::Describe, URI, Some(&value)), nonce)
    };
    let fresh = t0 + NONCE_LIFETIME.saturating_sub(Duration::from_millis(1));
    assert!(matches!(ask(&mut client, fresh, [2; 16]), Verdict::Granted { .. }));
    client.handle_success();
    let expired = t0 + NONCE_LIFETIME;
    match ask(&mut client, expired, [2; 16]) {
        Verdict::Unauthorized { challenges, failed: None, close: false } => {
            assert!(challenges[0].contains("stale=true") && challenges[0].contains("0202"), "{challenges:?}");
            client.handle_unauthorized(challenges.iter().map(String::as_str)).unwrap();
        }
        other => panic!("{other:?}"),
    }
    assert!(matches!(ask(&mut client, expired, [3; 16]), Verdict::Granted { .. }));
}

/// Section 10: three failures, then close. A nonce of another connection with a right digest is stale.
#[test]
fn the_third_wrong_password_closes_the_connection() {
    let now = start();
    let auth = realm(DigestOffer::Md5);
    let mut server = ConnAuth::new();
    let mut attempt = |user: &str, password: &str| {
        let challenge = challenges(server.verify(now, &auth, request(&Method::Describe, URI, None), [1; 16]));
        let mut client = ClientAuth::new(Some(Credentials::new(user, password)), BasicPolicy::Refuse);
        client.handle_unauthorized(challenge.iter().map(String::as_str)).unwrap();
        let value = client.authorization(&Method::Describe, URI, [5; 8]).unwrap();
        match server.verify(now, &auth, request(&Method::Describe, URI, Some(&value)), [1; 16]) {
            Verdict::Unauthorized { failed, close, .. } => (failed.unwrap(), close),
            Verdict::Granted { user } => panic!("{user}"),
        }
    };
    assert_eq!(attempt("viewer", "wrong"), ("viewer".to_owned(), false));
    // An account with an empty password is not the unknown user's.
    assert_eq!(attempt("nobody", ""), ("nobody".to_owned(), false));
    assert_eq!(attempt("viewer", "x"), ("viewer".to_owned(), true));

    let mut elsewhere = ConnAuth::new();
    let foreign = challenges(elsewhere.verify(now, &auth, request(&Method::Describe, URI, None), [8; 16]));
    let mut client = ClientAuth::new(Some(auth.accounts[0].clone()), BasicPolicy::Refuse);
    client.handle_unauthorized(foreign.iter().map(String::as_str)).unwrap();
    let value = client.authorization(&Method::Describe, URI, [5; 8]).unwrap();
    let verdict = ConnAuth::new().verify(now, &auth, request(&Method::Describe, URI, Some(&value)), [9; 16]);
    assert!(
        matches!(&verdict, Verdict::Unauthorized { failed: None, challenges, .. }
        if challenges[0].contains("stale=true")),
        "{verdict:?}"
    );
}

#[test]
fn basic_is_accepted_only_where_it_is_allowed() {
    let now = start();
    let value = format!("Basic {}", STANDARD.encode("viewer:s3cret"));
    let ask = |basic, value: &str| {
        let auth = ServerAuth { basic, ..realm(DigestOffer::Md5) };
        let verdict =
            ConnAuth::new().verify(now, &auth, request(&Method::Describe, URI, Some(value)), [1; 16]);
        matches!(verdict, Verdict::Granted { .. })
    };
    assert!(ask(BasicPolicy::Allow, &value));
    assert!(!ask(BasicPolicy::Refuse, &value));
    assert!(!ask(BasicPolicy::Allow, &format!("Basic {}", STANDARD.encode("viewer:s3cre"))));
    assert!(!ask(BasicPolicy::Allow, &format!("Basic {}", STANDARD.encode("nobody:"))));
    assert!(!ask(BasicPolicy::Allow, "Basic !!!"));
    assert!(!ask(BasicPolicy::Allow, "Bearer x"));
}

/// RTSP-38: challenges of sources, in one field or many.
#[test]
fn the_best_challenge_is_answered_however_they_are_packed() {
    let pick = |basic, fields: &[&str]| {
        let mut client = ClientAuth::new(Some(Credentials::new("admin", "pw")), basic);
        client.handle_unauthorized(fields.iter().copied())?;
        Ok::<_, AuthFailure>(client.authorization(&Method::Describe, "rtsp://c/", [0; 8]).unwrap())
    };
    let md5 = "Digest realm=\"IP Camera(12345)\", nonce=\"abc\", stale=\"FALSE\"";
    let sha =
        "Digest realm=\"cam\", nonce=\"def\", algorithm=\"SHA-256\", qop=\"auth,auth-int\", opaque=\"o\"";
    let basic = "Basic realm=\"cam, \\\"one\\\"\"";
    for fields in [&[md5, sha, basic][..], &[&format!("{basic}, {md5}, {sha}")], &[&format!("{sha},{md5}")]] {
        let value = pick(BasicPolicy::Allow, fields).unwrap();
        assert!(value.contains("algorithm=SHA-256") && value.contains("opaque=\"o\""), "{value}");
        assert!(value.contains("qop=auth, nc=00000001, cnonce=\"0000000000000000\""), "{value}");
    }
    let value = pick(BasicPolicy::Refuse, &[basic, md5]).unwrap();
    assert!(value.starts_with("Digest username=\"admin\", realm=\"IP Camera(12345)\", nonce=\"abc\", uri="));
    assert!(!value.contains("qop") && !value.contains("algorithm"), "{value}");
    assert_eq!(pick(BasicPolicy::Allow, &[basic]).unwrap(), "Basic YWRtaW46cHc=");
    assert_eq!(pick(BasicPolicy::Refuse, &[basic]), Err(AuthFailure::BasicNotAllowed), "RTSP-38");
    let unknown = "Digest realm=\"x\", nonce=\"y\", algorithm=SHA-512-256";
    assert_eq!(pick(BasicPolicy::Allow, &[unknown, "Negotiate"]), Err(AuthFailure::NoUsableChallenge));
    assert_eq!(pick(BasicPolicy::Allow, &[]), Err(AuthFailure::NoUsableChallenge));
    let spaced = "Digest  realm = \"x\" , nonce = \"n\"";
    assert!(pick(BasicPolicy::Refuse, &[spaced]).unwrap().contains("nonce=\"n\""));
}

#[test]
fn a_challenge_cannot_add_parameters_to_our_answer() {
    for challenge in [
        "Digest realm=\"r\", nonce=\"n\"x=\"y, opaque=a\"b",
        "Digest realm=\"r\", nonce=\"n\", opaque=\"o\\",
        "Digest realm=\"r\", nonce=\"n\", opaque=o\\",
        "Digest realm=\"r\", nonce=\"n\", opaque=\"o\rX-Y: z\"",
    ] {
        let mut client = ClientAuth::new(Some(Credentials::new("u", "p")), BasicPolicy::Refuse);
        client.handle_unauthorized([challenge].into_iter()).unwrap();
        let value = client.authorization(&Method::Play, "rtsp://c/", [0; 8]).unwrap();
        let Some(Authorization::Digest(sent)) = Authorization::parse(&value) else { panic!("{value}") };
        assert_eq!((sent.nonce.as_str(), sent.uri.as_str()), ("n", "rtsp://c/"), "{value}");
    }
}

#[test]
fn a_source_that_refuses_the_credentials_is_believed() {
    let mut client = ClientAuth::new(Some(Credentials::new("admin", "pw")), BasicPolicy::Allow);
    let digest = |n: u32| format!("Digest realm=\"r\", nonce=\"{n}\"");
    let mut refuse = |n| client.handle_unauthorized([digest(n).as_str()].into_iter());
    assert_eq!(refuse(1), Ok(()));
    assert_eq!(refuse(1), Err(AuthFailure::Rejected), "the same nonce again");
    assert_eq!(refuse(2), Ok(()), "a camera that changes its nonce with every answer");
    assert_eq!(refuse(3), Err(AuthFailure::Rejected));
    client.handle_success();
    assert_eq!(client.handle_unauthorized([digest(4).as_str()].into_iter()), Ok(()), "re-authentication");
    let mut none = ClientAuth::new(None, BasicPolicy::Allow);
    assert_eq!(none.handle_unauthorized(["Basic realm=\"x\""].into_iter()), Err(AuthFailure::NoCredentials));
    assert_eq!(none.authorization(&Method::Describe, "rtsp://c/", [0; 8]), None);
}

/// SEC-13.
#[test]
fn the_eleventh_failure_in_a_minute_waits() {
    let t0 = start();
    let mut limiter = FailureLimiter::new();
    let (here, there) = ("10.0.0.1".parse().unwrap(), "10.0.0.2".parse().unwrap());
    for _ in 0..MAX_FAILURES_PER_MINUTE {
        assert_eq!(limiter.check(t0, here, "u"), Ok(()));
        limiter.record_failure(t0, here, "u");
    }
    let later = t0 + Duration::from_secs(20);
    assert_eq!(limiter.check(later, here, "u"), Err(Duration::from_secs(40)));
    assert_eq!(limiter.check(later, "::ffff:10.0.0.1".parse().unwrap(), "u"), Err(Duration::from_secs(40)));
    assert_eq!(limiter.check(later, here, "v"), Ok(()));
    assert_eq!(limiter.check(later, there, "u"), Ok(()));
    assert_eq!(limiter.check(t0 + Duration::from_mins(1), here, "u"), Ok(()));
    limiter.record_failure(t0 + Duration::from_mins(1), here, "u");
    assert_eq!(limiter.check(t0 + Duration::from_mins(1), here, "u"), Ok(()));
}

#[test]
fn the_limiter_does_not_grow_with_the_number_of_guessers() {
    let t0 = start();
    let mut limiter = FailureLimiter::new();
    for n in 0..6000u32 {
        let at = t0 + Duration::from_millis(u64::from(n));
        limiter.record_failure(at, std::net::Ipv4Addr::from(n).into(), "u");
    }
    assert_eq!(limiter.len(), 4096);
    assert!(!limiter.is_empty());
}

/// SEC-12.
#[test]
fn secrets_are_not_printed() {
    let auth = realm(DigestOffer::Md5);
    let client = ClientAuth::new(Some(auth.accounts[0].clone()), BasicPolicy::Allow);
    let basic = Authorization::parse(&format!("Basic {}", STANDARD.encode("viewer:s3cret"))).unwrap();
    let printed = format!("{auth:?} {client:?} {basic:?} {:?}", Secret::new("s3cret"));
    assert!(!printed.contains("s3cret"), "{printed}");
}

proptest! {
    #[test]
    fn any_field_is_read_or_refused(value in "\\PC{0,80}|(Digest|Basic) [ -~]{0,80}|([a-z]{1,8}=\"?[a-z\\\\\",]{0,6}\"?, ?){0,8}") {
        let _ = Authorization::parse(&value);
        let digest = format!("Digest {value}");
        let _ = Authorization::parse(&digest);
        let _ = parse_challenges([value.as_str(), digest.as_str()].into_iter());
        let mut client = ClientAuth::new(Some(Credentials::new("u", "p")), BasicPolicy::Allow);
        if client.handle_unauthorized([value.as_str()].into_iter()).is_ok() {
            let answer = client.authorization(&Method::Play, "rtsp://c/x", [1; 8]).unwrap();
            prop_assert!(Authorization::parse(&answer).is_some(), "{}", answer);
        }
    }

    #[test]
    fn any_user_and_password_authenticate_and_no_other_do(
        user in "[^:\\p{Cc}]{1,12}", password in "\\PC{0,12}", wrong in "\\PC{0,12}", realm in "[^\\p{Cc}]{0,12}",
    ) {
        let now = start();
        let right = Credentials::new(user.clone(), password.clone());
        for digest in [DigestOffer::Md5, DigestOffer::Sha256ThenMd5] {
            let auth = ServerAuth {
                realm: realm.clone(), accounts: vec![right.clone()], digest, basic: BasicPolicy::Refuse,
            };
            for (tried, wanted) in [(right.clone(), true), (Credentials::new(user.clone(), wrong.clone()), wrong == password)] {
                let mut server = ConnAuth::new();
                let offered = challenges(server.verify(now, &auth, request(&Method::Play, URI, None), [4; 16]));
                let mut client = ClientAuth::new(Some(tried), BasicPolicy::Refuse);
                client.handle_unauthorized(offered.iter().map(String::as_str)).unwrap();
                let value = client.authorization(&Method::Play, URI, [6; 8]).unwrap();
                let verdict = server.verify(now, &auth, request(&Method::Play, URI, Some(&value)), [4; 16]);
                prop_assert_eq!(matches!(verdict, Verdict::Granted { .. }), wanted);
            }
        }
    }
}
