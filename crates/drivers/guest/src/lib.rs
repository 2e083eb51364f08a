//! What a guest asks of its link: DHCP, DNS and the instance metadata service.
