//! RTP packets: a view that validates once, header extensions, a builder and in-place edits.

pub mod build;
pub mod ext;
pub mod view;

pub use build::{PacketBuilder, set_header};
pub use ext::{Extension, ExtensionElements};
pub use view::{HEADER_LEN, RtpView, is_rtcp};

/// Reads every part of a packet that may come from anywhere; must return for any input. Entry of the
/// fuzz target `rtp`.
#[doc(hidden)]
pub fn fuzz(data: &[u8]) {
    let Some(view) = RtpView::parse(data) else { return };
    let _ = (view.seq(), view.timestamp(), view.ssrc(), view.payload_type(), view.marker());
    let _ = view.csrcs().count();
    if let Some(extension) = view.extension() {
        let _ = extension.elements().count();
    }
    let _ = view.payload().map(<[u8]>::len);
    for codec in [crate::Codec::H264, crate::Codec::H265] {
        let _ = codec.resume_point(view.raw_payload());
    }
    let mut copy = data.to_vec();
    set_header(&mut copy, view.seq(), view.timestamp(), view.ssrc());
    assert_eq!(copy, data, "writing back what was read changes nothing");
}
