"""The rules of the guard, as nftables reads them. `rules` fills in the names that begin with a dollar sign.

Offsets are in bits from the first bit of the frame: destination MAC 0 (its group bit is bit 7), source MAC 48,
EtherType 96, and then

=====================  ======================  ==========================
ARP (RFC 826)          IPv4 (RFC 791)          IPv6 (RFC 8200)
=====================  ======================  ==========================
112 types and lengths  112 version, length     112 version
160 operation          162 flags, 163 offset   144 payload length
176 sender MAC         184 protocol            160 next header, 168 hops
224 sender IP          208 source              176 source
304 target IP          240 destination         304 destination
                       272 first of payload    432 first of payload
=====================  ======================  ==========================
"""

from __future__ import annotations

from typing import Final

TEMPLATE: Final = """\
table netdev $table { }
delete table netdev $table
table netdev $table {
$counters
  set scope4 { typeof @ll,240,32; flags interval; $scope4 }
  set scope6 { typeof @ll,304,128; flags interval; $scope6 }
  set excluded4 { typeof @ll,240,32; flags interval; $excluded4 }
  set excluded6 { typeof @ll,304,128; flags interval; $excluded6 }
  set resolvers4 { typeof @ll,240,32; flags interval; $resolvers4 }
  set resolvers6 { typeof @ll,304,128; flags interval; $resolvers6 }
  set own4 { typeof @ll,208,32; $own4 }
  set own6 { typeof @ll,176,128; $own6 }
  set gateways4 { typeof @ll,304,32; $gateways4 }
  set gateways6 { typeof @ll,304,128; $gateways6 }
  set asked6 { typeof @ll,176,128; size 256; flags dynamic,timeout; timeout 10s; }

  chain egress {
    type filter hook egress device "$device" priority 0; policy drop;
    @ll,48,48 != 0x$mac counter name drop_source_mac drop
    @ll,96,16 0x0800 goto to4
    @ll,96,16 0x86dd goto to6
    @ll,96,16 0x0806 goto to_arp
    counter name drop_ethertype drop
  }

  chain to4 {
    @ll,112,8 != 0x45 counter name drop_header4 drop
    @ll,208,32 != @own4 counter name drop_source4 drop
    @ll,240,32 @excluded4 counter name drop_excluded4 drop
    @ll,7,1 != 0 counter name drop_group4 drop
    @ll,240,32 @scope4 goto scoped4
    @ll,240,32 @resolvers4 goto resolver4
    counter name drop_target4 drop
  }
  chain scoped4 {
    @ll,184,8 1 @ll,163,13 0 @ll,272,8 != { 0, 3, 8, 11, 12, 13, 14, 15, 16, 17, 18 } counter name drop_icmp4 drop
    @ll,184,8 { 1, 6, 17 } counter name pass_ip4 accept
    counter name drop_protocol4 drop
  }
  chain resolver4 {
    @ll,184,8 { 6, 17 } @ll,162,14 0 @ll,288,16 53 counter name pass_dns accept
    @ll,184,8 1 @ll,272,8 3 counter name quiet_unreachable drop
    counter name drop_resolver_port drop
  }

  chain to6 {
    @ll,112,4 != 6 counter name drop_header6 drop
    @ll,160,8 0 @ll,432,8 58 @ll,496,8 { 131, 132, 143 } counter name quiet_mld drop
    @ll,160,8 58 @ll,432,8 133 counter name quiet_router_solicit drop
    @ll,160,8 58 @ll,432,8 135 @ll,176,128 0 counter name quiet_dad drop
    @ll,176,128 != @own6 counter name drop_source6 drop
    @ll,160,8 58 @ll,432,8 135 goto solicit6
    @ll,160,8 58 @ll,432,8 136 goto advert6
    @ll,304,128 @excluded6 counter name drop_excluded6 drop
    @ll,7,1 != 0 counter name drop_group6 drop
    @ll,304,128 @scope6 goto scoped6
    @ll,304,128 @resolvers6 goto resolver6
    counter name drop_target6 drop
  }
  chain scoped6 {
    @ll,160,8 { 6, 17 } counter name pass_ip6 accept
    @ll,160,8 58 @ll,432,8 { 1, 2, 3, 4, 128, 129, 139, 140 } counter name pass_ip6 accept
    @ll,160,8 58 counter name drop_icmp6 drop
    @ll,160,8 44 @ll,432,8 { 6, 17 } counter name pass_ip6 accept
    @ll,160,8 44 @ll,432,8 58 @ll,448,13 0 @ll,496,8 { 1, 2, 3, 4, 128, 129, 139, 140 } counter name pass_ip6 accept
    @ll,160,8 44 @ll,432,8 58 @ll,448,13 != 0 counter name pass_ip6 accept
    counter name drop_extension6 drop
  }
  chain resolver6 {
    @ll,160,8 { 6, 17 } @ll,448,16 53 counter name pass_dns accept
    @ll,160,8 58 @ll,432,8 1 counter name quiet_unreachable drop
    counter name drop_resolver_port drop
  }
  chain solicit6 {
    @ll,168,8 != 255 counter name drop_nd_form drop
    @ll,440,8 != 0 counter name drop_nd_form drop
    @ll,144,16 != { 24, 32 } counter name drop_nd_form drop
    @ll,144,16 32 @ll,624,64 != 0x0101$mac counter name drop_nd_form drop
    @ll,496,128 @scope6 goto solicit_path6
    @ll,496,128 @gateways6 goto solicit_path6
    @ll,496,128 @resolvers6 goto solicit_path6
    counter name drop_nd_target drop
  }
  chain solicit_path6 {
    @ll,0,24 0x3333ff @ll,304,104 0xff0200000000000000000001ff counter name pass_nd accept
    @ll,7,1 != 0 counter name drop_nd_path drop
    @ll,304,128 @scope6 counter name pass_nd accept
    @ll,304,128 @gateways6 counter name pass_nd accept
    @ll,304,128 @resolvers6 counter name pass_nd accept
    counter name drop_nd_path drop
  }
  chain advert6 {
    @ll,168,8 != 255 counter name drop_nd_form drop
    @ll,440,8 != 0 counter name drop_nd_form drop
    @ll,144,16 != { 24, 32 } counter name drop_nd_form drop
    @ll,144,16 32 @ll,624,64 != 0x0201$mac counter name drop_nd_form drop
    @ll,496,128 != @own6 counter name drop_nd_form drop
    @ll,7,1 != 0 counter name drop_nd_path drop
    @ll,304,128 @scope6 counter name pass_nd accept
    @ll,304,128 @gateways6 counter name pass_nd accept
    @ll,304,128 @resolvers6 counter name pass_nd accept
    @ll,304,128 @asked6 counter name pass_nd accept
    counter name drop_nd_target drop
  }

  chain to_arp {
    meta length > 60 counter name drop_arp_form drop
    @ll,112,48 != 0x000108000604 counter name drop_arp_form drop
    @ll,176,48 != 0x$mac counter name drop_arp_sender drop
    @ll,224,32 != @own4 counter name drop_arp_sender drop
    @ll,160,16 1 @ll,0,48 0xffffffffffff goto arp_target
    @ll,160,16 { 1, 2 } @ll,7,1 0 goto arp_target
    counter name drop_arp_form drop
  }
  chain arp_target {
    @ll,304,32 @scope4 counter name pass_arp accept
    @ll,304,32 @gateways4 counter name pass_arp accept
    @ll,304,32 @resolvers4 counter name pass_arp accept
    counter name drop_arp_target drop
  }

  chain ingress {
    type filter hook ingress device "$device" priority 0; policy drop;
    @ll,96,16 0x0800 goto from4
    @ll,96,16 0x86dd goto from6
    @ll,96,16 0x0806 @ll,224,32 @scope4 accept
    @ll,96,16 0x0806 @ll,224,32 @gateways4 accept
    @ll,96,16 0x0806 @ll,224,32 @resolvers4 accept
    counter name quiet_received drop
  }
  chain from4 {
    @ll,184,8 1 @ll,272,8 { 5, 9, 10 } counter name quiet_received drop
    @ll,208,32 @scope4 accept
    @ll,208,32 @resolvers4 @ll,184,8 { 6, 17 } @ll,272,16 53 accept
    @ll,184,8 1 @ll,272,8 { 3, 11, 12 } accept
    counter name quiet_received drop
  }
  chain from6 {
    @ll,160,8 58 @ll,432,8 { 130, 131, 132, 133, 134, 137, 143 } counter name quiet_received drop
    @ll,176,128 @scope6 accept
    @ll,176,128 @resolvers6 @ll,160,8 { 6, 17 } @ll,432,16 53 accept
    @ll,160,8 58 @ll,432,8 { 1, 2, 3, 4 } accept
    @ll,160,8 58 @ll,432,8 { 135, 136 } goto neighbour6
    counter name quiet_received drop
  }
  chain neighbour6 {
    @ll,176,128 @gateways6 accept
    @ll,176,128 @resolvers6 accept
    @ll,432,8 136 accept
    @ll,176,10 0x3fa @ll,496,128 @own6 update @asked6 { @ll,176,128 timeout 10s } accept
    counter name quiet_received drop
  }

  chain gate {
    type filter hook egress device "$device" priority 10; policy drop;
    counter name gate_held drop
  }
}
"""
"""Why each rule is there stands in docs/guard-rules.md."""
