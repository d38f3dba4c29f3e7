use std::string::ToString;
use std::vec::Vec;

use super::*;

#[test]
fn the_list_is_the_documented_one() {
    let names: Vec<_> = DropReason::ALL.iter().map(|reason| reason.as_str()).collect();
    assert_eq!(
        names.join(" "),
        "malformed unknown_source ssrc payload_type duplicate late replay auth no_key no_flow queue_full \
         ring_full socket_overflow softnet mtu ttl policy rate_limit loop fec_invalid"
    );
}

#[test]
fn numbers_and_places_agree() {
    for (place, reason) in DropReason::ALL.into_iter().enumerate() {
        assert_eq!(reason.index(), place);
        assert_eq!(DropReason::from_index(place), Some(reason));
        assert_eq!(reason.to_string(), reason.as_str());
    }
    assert_eq!(DropReason::from_index(DropReason::ALL.len()), None);
}
