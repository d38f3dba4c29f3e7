//! Frames, built byte by byte and apart from the code under test.

/// A UDP frame under construction: RTP over IPv4 unless told otherwise.
#[derive(Debug, Clone)]
pub(crate) struct Frame {
    pub(crate) v6: bool,
    /// Last byte of the source address.
    pub(crate) src: u8,
    /// Last byte of the destination address.
    pub(crate) dst: u8,
    pub(crate) src_port: u16,
    pub(crate) dst_port: u16,
    pub(crate) protocol: u8,
    /// The two bytes of flags and fragment offset (IPv4).
    pub(crate) fragment: u16,
    /// Options after the IPv4 header; a multiple of four bytes.
    pub(crate) options: Vec<u8>,
    /// A VLAN tag between the addresses and the EtherType.
    pub(crate) vlan: bool,
    /// Added to the declared length of the IP packet.
    pub(crate) ip_len_error: i32,
    /// Added to the declared length of the UDP datagram.
    pub(crate) udp_len_error: i32,
    pub(crate) payload: Vec<u8>,
    /// Bytes after the IP packet, as Ethernet pads short frames.
    pub(crate) trailer: usize,
}

impl Frame {
    /// From 10.9.0.1 (fd09::1) to 10.9.0.2 (fd09::2).
    pub(crate) fn udp(src_port: u16, dst_port: u16, payload: &[u8]) -> Self {
        Self {
            v6: false,
            src: 1,
            dst: 2,
            src_port,
            dst_port,
            protocol: 17,
            fragment: 0x4000,
            options: Vec::new(),
            vlan: false,
            ip_len_error: 0,
            udp_len_error: 0,
            payload: payload.to_vec(),
            trailer: 0,
        }
    }

    pub(crate) fn v6(self) -> Self {
        Self { v6: true, ..self }
    }

    /// The bytes on the wire, checksums included.
    pub(crate) fn bytes(&self) -> Vec<u8> {
        let mut frame = vec![2, 0, 0, 0, 0, 2, 2, 0, 0, 0, 0, 1];
        if self.vlan {
            frame.extend([0x81, 0x00, 0x00, 0x05]);
        }
        let datagram = self.datagram();
        if self.v6 {
            frame.extend([0x86, 0xdd]);
            frame.extend([0x60, 0, 0, 0]);
            frame.extend(declared(datagram.len(), self.ip_len_error));
            frame.extend([self.protocol, 64]);
            frame.extend(address6(self.src));
            frame.extend(address6(self.dst));
        } else {
            frame.extend([0x08, 0x00]);
            let mut header = vec![0x45 + (self.options.len() / 4) as u8, 0];
            header.extend(declared(20 + self.options.len() + datagram.len(), self.ip_len_error));
            header.extend([0, 1]);
            header.extend(self.fragment.to_be_bytes());
            header.extend([64, self.protocol, 0, 0, 10, 9, 0, self.src, 10, 9, 0, self.dst]);
            header.extend(&self.options);
            let check = checksum(&header);
            header[10..12].copy_from_slice(&check.to_be_bytes());
            frame.extend(header);
        }
        frame.extend(datagram);
        frame.extend(vec![0; self.trailer]);
        frame
    }

    fn datagram(&self) -> Vec<u8> {
        let mut datagram = Vec::new();
        datagram.extend(self.src_port.to_be_bytes());
        datagram.extend(self.dst_port.to_be_bytes());
        datagram.extend(declared(8 + self.payload.len(), self.udp_len_error));
        datagram.extend([0, 0]);
        datagram.extend(&self.payload);
        let mut summed = if self.v6 {
            [address6(self.src), address6(self.dst)].concat()
        } else {
            vec![10, 9, 0, self.src, 10, 9, 0, self.dst]
        };
        summed.extend([0, 17]);
        summed.extend((datagram.len() as u16).to_be_bytes());
        summed.extend(&datagram);
        let check = match checksum(&summed) {
            0 => 0xffff,
            check => check,
        };
        datagram[6..8].copy_from_slice(&check.to_be_bytes());
        datagram
    }
}

fn address6(last: u8) -> [u8; 16] {
    [0xfd, 0x09, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, last]
}

fn declared(len: usize, error: i32) -> [u8; 2] {
    ((len as i32 + error) as u16).to_be_bytes()
}

fn checksum(bytes: &[u8]) -> u16 {
    let mut sum: u32 = 0;
    for pair in bytes.chunks(2) {
        sum += u32::from(pair[0]) << 8 | u32::from(*pair.get(1).unwrap_or(&0));
    }
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !(sum as u16)
}

/// An RTP packet with 160 bytes of payload.
pub(crate) fn rtp(payload_type: u8, seq: u16, ssrc: u32) -> Vec<u8> {
    let mut packet = vec![0x80, payload_type];
    packet.extend(seq.to_be_bytes());
    packet.extend((u32::from(seq) * 160).to_be_bytes());
    packet.extend(ssrc.to_be_bytes());
    packet.extend([0xd5; 160]);
    packet
}

/// An RTCP receiver report without report blocks.
pub(crate) fn rtcp(ssrc: u32) -> Vec<u8> {
    [&[0x80, 201, 0, 1][..], &ssrc.to_be_bytes(), &[0; 8]].concat()
}
