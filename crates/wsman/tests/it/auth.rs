//! Logins without sockets: what both halves say to lies, cut tokens, changed messages.

use std::sync::Arc;

use proptest::prelude::*;
use wsman::ErrorKind;
use wsman::auth::account::LoginName;
use wsman::auth::binding::ChannelBinding;
use wsman::auth::negotiate::{NegotiateAcceptor, NegotiateInitiator};
use wsman::auth::ntlm::{CbtHardening, NtlmClientOptions};
use wsman::auth::{Accepted, Acceptor, Initiator, NtHash, Proof, Seal, Secret};

use crate::transport_stage::{Certified, Dice, PASSWORD, accounts, negotiate_options};

fn initiator(binding: Option<ChannelBinding>) -> NegotiateInitiator {
    let options = NtlmClientOptions {
        login: LoginName::parse("Administrator"),
        hash: NtHash::of(&Secret::new(PASSWORD)),
        target: "HTTP/localhost".to_owned(),
        binding,
    };
    NegotiateInitiator::ntlm(options, Dice::new(1))
}

fn acceptor(hardening: CbtHardening, binding: Option<ChannelBinding>) -> NegotiateAcceptor {
    NegotiateAcceptor::new(
        negotiate_options(hardening),
        binding,
        Arc::new(accounts()),
        Dice::new(2),
    )
}

fn relaxed() -> NegotiateAcceptor {
    acceptor(CbtHardening::Relaxed, None)
}

fn continued(accepted: wsman::Result<Accepted>) -> Vec<u8> {
    match accepted {
        Ok(Accepted::Continue(token)) => token,
        Ok(Accepted::Done(_)) => panic!("done too early"),
        Err(error) => panic!("{error}"),
    }
}

fn finished(accepted: wsman::Result<Accepted>) -> wsman::Result<Proof> {
    accepted.map(|accepted| match accepted {
        Accepted::Done(proof) => proof,
        Accepted::Continue(_) => panic!("a login of two legs"),
    })
}

/// A whole login; the keys of both.
fn log_in() -> (Box<dyn Seal>, Box<dyn Seal>) {
    let (mut asks, mut answers) = (initiator(None), relaxed());
    let challenge = continued(answers.step(&asks.step(None).expect("a token")));
    let last = asks.step(Some(&challenge)).expect("a token");
    let proof = finished(answers.step(&last)).expect("proved");
    let ours = Box::new(asks).finish(proof.token.as_deref()).expect("keys");
    (ours, proof.seal.expect("keys"))
}

#[test]
fn keys_of_both_sides_fit_in_both_directions() {
    let (mut ours, mut theirs) = log_in();
    for round in 0..50_usize {
        let plain = vec![b'x'; round * 37];
        let sealed = ours.seal(&plain).expect("sealed");
        assert_eq!(
            theirs.open(&sealed.header, sealed.data).expect("opened"),
            plain
        );
        if round % 3 == 0 {
            let sealed = theirs.seal(&plain).expect("sealed");
            assert_eq!(
                ours.open(&sealed.header, sealed.data).expect("opened"),
                plain
            );
        }
    }
}

#[test]
fn a_body_out_of_its_order_or_changed_does_not_open() {
    let (mut ours, mut theirs) = log_in();
    let first = ours.seal(b"first").expect("sealed");
    let second = ours.seal(b"second").expect("sealed");
    let error = theirs
        .open(&second.header, second.data)
        .expect_err("out of order");
    assert_eq!(error.kind(), ErrorKind::Refused);
    let (mut ours, mut theirs) = log_in();
    assert_eq!(ours.seal(b"first").expect("sealed"), first, "the same dice");
    let mut data = first.data.clone();
    data[0] ^= 1;
    let error = theirs.open(&first.header, data).expect_err("changed");
    assert_eq!(error.kind(), ErrorKind::Refused);
    for header in [&[][..], &first.header[..15], &[0; 17]] {
        let (_, mut theirs) = log_in();
        let error = theirs
            .open(header, first.data.clone())
            .expect_err("no signature");
        assert_eq!(error.kind(), ErrorKind::Refused);
    }
}

#[test]
fn a_message_changed_on_its_way_fails_the_login() {
    let (mut asks, mut answers) = (initiator(None), relaxed());
    let mut first = asks.step(None).expect("a token");
    // Somebody strikes the wish for 56-bit keys, which nobody would miss, from NEGOTIATE.
    let at = find(&first, b"NTLMSSP\0\x01");
    first[at + 15] ^= 0x80;
    let challenge = continued(answers.step(&first));
    let last = asks.step(Some(&challenge)).expect("a token");
    let error = finished(answers.step(&last)).err().expect("changed");
    assert_eq!(error.kind(), ErrorKind::Unauthorized);
}

fn find(bytes: &[u8], part: &[u8]) -> usize {
    let place = bytes.windows(part.len()).position(|it| it == part);
    place.expect("it is there")
}

#[test]
fn a_challenge_is_good_for_one_try() {
    let (mut asks, mut answers) = (initiator(None), relaxed());
    let challenge = continued(answers.step(&asks.step(None).expect("a token")));
    let last = asks.step(Some(&challenge)).expect("a token");
    finished(answers.step(&last)).expect("proved");
    let error = finished(answers.step(&last)).err().expect("again");
    assert_eq!(error.kind(), ErrorKind::Malformed);
}

#[test]
fn bindings_to_the_channel_are_judged_as_hardening_says() {
    let here = ChannelBinding::of_certificate(&Certified::localhost().der).expect("a certificate");
    let there = ChannelBinding::of_certificate(&Certified::localhost().der).expect("a certificate");
    let cases = [
        (CbtHardening::None, None, true),
        (CbtHardening::None, Some(&there), true),
        (CbtHardening::Relaxed, None, true),
        (CbtHardening::Relaxed, Some(&here), true),
        (CbtHardening::Relaxed, Some(&there), false),
        (CbtHardening::Strict, None, false),
        (CbtHardening::Strict, Some(&here), true),
        (CbtHardening::Strict, Some(&there), false),
    ];
    for (hardening, sent, is_taken) in cases {
        let mut asks = initiator(sent.cloned());
        let mut answers = acceptor(hardening, Some(here.clone()));
        let challenge = continued(answers.step(&asks.step(None).expect("a token")));
        let last = asks.step(Some(&challenge)).expect("a token");
        let outcome = finished(answers.step(&last))
            .map(|_| ())
            .map_err(|it| it.kind());
        let expected = if is_taken {
            Ok(())
        } else {
            Err(ErrorKind::Unauthorized)
        };
        assert_eq!(outcome, expected, "{hardening:?}");
    }
}

#[test]
fn a_server_that_offers_weak_keys_is_not_talked_to() {
    let (mut asks, mut answers) = (initiator(None), relaxed());
    let challenge = continued(answers.step(&asks.step(None).expect("a token")));
    let at = find(&challenge, b"NTLMSSP\0\x02") + 20;
    // Extended session security, 128 bits, sealing: each is needed.
    for (byte, bit) in [(2, 0x08), (3, 0x20), (0, 0x20)] {
        let mut asks = initiator(None);
        asks.step(None).expect("a token");
        let mut weak = challenge.clone();
        weak[at + byte] &= !bit;
        let error = asks.step(Some(&weak)).expect_err("weak");
        assert_eq!(error.kind(), ErrorKind::Unsupported, "{error}");
    }
}

#[test]
fn secrets_are_not_shown() {
    let secret = Secret::new(PASSWORD);
    let shown = format!("{secret:?} {:?}", NtHash::of(&secret));
    assert_eq!(shown, "Secret NtHash");
}

/// Changes some bytes, or cuts.
fn mangle(token: &mut Vec<u8>, changes: &[(usize, u8)], keep: usize) {
    for (at, value) in changes {
        if let Some(byte) = token.get_mut(at % 600) {
            *byte = *value;
        }
    }
    if keep.is_multiple_of(4) {
        token.truncate(keep % 700);
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    #[test]
    fn mangled_tokens_are_errors_or_fail_the_login_and_never_panic(
        which in 0..4,
        changes in proptest::collection::vec((any::<usize>(), any::<u8>()), 0..6),
        keep in any::<usize>(),
    ) {
        let (mut asks, mut answers) = (initiator(None), relaxed());
        let mut first = asks.step(None).expect("a token");
        if which == 0 { mangle(&mut first, &changes, keep); }
        let Ok(Accepted::Continue(mut challenge)) = answers.step(&first) else { return Ok(()); };
        if which == 1 { mangle(&mut challenge, &changes, keep); }
        let Ok(mut last) = asks.step(Some(&challenge)) else { return Ok(()); };
        if which == 2 { mangle(&mut last, &changes, keep); }
        let Ok(Accepted::Done(proof)) = answers.step(&last) else { return Ok(()); };
        let mut token = proof.token.expect("the list is signed");
        if which == 3 { mangle(&mut token, &changes, keep); }
        let Ok(mut ours) = Box::new(asks).finish(Some(&token)) else { return Ok(()); };
        // Whoever got here has the right password, and what was changed did not matter, or was the signature of the list being
        // taken away: then the numbers of signatures do not fit, and nothing is opened.
        let mut theirs = proof.seal.expect("keys");
        let sealed = ours.seal(b"<q/>").expect("sealed");
        match theirs.open(&sealed.header, sealed.data) {
            Ok(opened) => prop_assert_eq!(opened, b"<q/>"),
            Err(error) => prop_assert!(which == 2 && error.kind() == ErrorKind::Refused, "{}", error),
        }
    }
}
