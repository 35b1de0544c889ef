package driver

import (
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
)

// Buckets of the store; the keys are Docker's IDs.
const (
	networkBucket  = "networks"
	endpointBucket = "endpoints"
	exposureBucket = "exposed" // its keys are addresses
)

// networkRecord is a network on disk.
type networkRecord struct {
	ID       string         `json:"id"`
	Segment  string         `json:"segment"`
	Subnets  []netip.Prefix `json:"subnets"`
	Bridge   string         `json:"bridge"`
	WantMTU  int            `json:"want_mtu,omitempty"` // asked for by an option; 0: not
	MTU      int            `json:"mtu"`                // of the segment
	Internal bool           `json:"internal,omitempty"`
	DNS      DNS            `json:"dns,omitempty"`

	port string // link towards the mesh, known once joined since the start
}

// sameRequest tells whether two records answer the same call.
func (r *networkRecord) sameRequest(o *networkRecord) bool {
	return r.Segment == o.Segment && r.WantMTU == o.WantMTU && r.Internal == o.Internal && r.DNS == o.DNS &&
		slices.Equal(r.Subnets, o.Subnets)
}

// endpointRecord is an endpoint on disk.
type endpointRecord struct {
	ID        string         `json:"id"`
	Network   string         `json:"network"`
	Addrs     []netip.Prefix `json:"addrs"`
	MAC       hardwareAddr   `json:"mac"`
	GivenMAC  bool           `json:"given_mac,omitempty"` // by Docker, not derived
	Link      string         `json:"link"`                // what follows the prefix in the links' names
	Joined    bool           `json:"joined,omitempty"`
	Sandbox   string         `json:"sandbox,omitempty"`
	Multicast bool           `json:"multicast,omitempty"` // has the sandbox's multicast route
	Container string         `json:"container,omitempty"`
}

func (r *endpointRecord) hostLink() string      { return hostLinkPrefix + r.Link }
func (r *endpointRecord) containerLink() string { return containerLinkPrefix + r.Link }

func (r *endpointRecord) sameRequest(o *endpointRecord) bool {
	return r.Network == o.Network && r.GivenMAC == o.GivenMAC && r.MAC.String() == o.MAC.String() &&
		slices.Equal(r.Addrs, o.Addrs)
}

// has tells whether the endpoint has an address.
func (r *endpointRecord) has(addr netip.Addr) bool {
	return slices.ContainsFunc(r.Addrs, func(p netip.Prefix) bool { return p.Addr() == addr })
}

// hardwareAddr is a MAC address that is text in JSON.
type hardwareAddr net.HardwareAddr

func (a hardwareAddr) String() string { return net.HardwareAddr(a).String() }

// MarshalText writes aa:bb:cc:dd:ee:ff.
func (a hardwareAddr) MarshalText() ([]byte, error) { return []byte(a.String()), nil }

// UnmarshalText reads what MarshalText writes.
func (a *hardwareAddr) UnmarshalText(text []byte) error {
	mac, err := parseMAC(string(text))
	*a = hardwareAddr(mac)
	return err
}

// parseMAC reads the address of one Ethernet interface.
func parseMAC(s string) (net.HardwareAddr, error) {
	mac, err := net.ParseMAC(s)
	if err != nil {
		return nil, err
	}
	if len(mac) != 6 {
		return nil, fmt.Errorf("MAC address %s: want 6 bytes", s)
	}
	if mac[0]&1 != 0 {
		return nil, fmt.Errorf("MAC address %s is a multicast address", s)
	}
	if mac.String() == "00:00:00:00:00:00" {
		return nil, errors.New("MAC address 00:00:00:00:00:00 is no address")
	}
	return mac, nil
}

// load fills the maps from the store.
func (d *Driver) load() error {
	err := loadBucket(d.store, networkBucket, func(key string, r networkRecord) error {
		if err := r.check(key); err != nil {
			return err
		}
		for _, other := range d.networks {
			if other.rec.Segment == r.Segment || other.rec.Bridge == r.Bridge {
				return fmt.Errorf("shares segment or bridge with network %s", other.rec.ID)
			}
		}
		d.networks[key] = &network{rec: r}
		return nil
	})
	if err != nil {
		return err
	}
	err = loadBucket(d.store, exposureBucket, func(key string, r exposureRecord) error {
		n := d.networks[r.Network]
		switch {
		case r.Addr.String() != key:
			return fmt.Errorf("the record is of address %s", r.Addr)
		case n == nil:
			return fmt.Errorf("its network %q is not stored", r.Network)
		}
		d.exposures[r.Addr] = &exposure{rec: r}
		return r.check(n.rec.Subnets)
	})
	if err != nil {
		return err
	}
	links := make(map[string]bool)
	return loadBucket(d.store, endpointBucket, func(key string, r endpointRecord) error {
		if err := r.check(key); err != nil {
			return err
		}
		if d.networks[r.Network] == nil {
			return fmt.Errorf("its network %q is not stored", r.Network)
		}
		if links[r.Link] {
			return fmt.Errorf("shares its link %s with another endpoint", r.hostLink())
		}
		links[r.Link] = true
		d.endpoints[key] = &endpoint{rec: r}
		return nil
	})
}

// check refuses a record that we cannot have written.
func (r *networkRecord) check(key string) error {
	switch {
	case r.ID != key:
		return fmt.Errorf("the record is of network %q", r.ID)
	case r.Segment == "":
		return errors.New("no segment")
	case len(r.Subnets) == 0 || slices.Contains(r.Subnets, netip.Prefix{}):
		return errors.New("a subnet is missing")
	case !isLinkName(bridgePrefix, r.Bridge):
		return fmt.Errorf("bridge %q", r.Bridge)
	case r.MTU < minMTU || r.MTU > maxMTU:
		return fmt.Errorf("MTU %d", r.MTU)
	}
	return checkID("network", key)
}

func (r *endpointRecord) check(key string) error {
	switch {
	case r.ID != key:
		return fmt.Errorf("the record is of endpoint %q", r.ID)
	case len(r.Addrs) == 0 || len(r.MAC) == 0 || r.has(netip.Addr{}):
		return errors.New("an address is missing")
	case !isLinkName(hostLinkPrefix, r.hostLink()):
		return fmt.Errorf("link %q", r.Link)
	}
	return checkID("endpoint", key)
}

// loadBucket decodes every value of a bucket and hands it to use. An error
// names the bucket and the key.
func loadBucket[T any](s Store, bucket string, use func(key string, record T) error) error {
	values, err := s.Load(bucket)
	if err != nil {
		return fmt.Errorf("bucket %q: %w", bucket, err)
	}
	for key, value := range values {
		var record T
		err := json.Unmarshal(value, &record)
		if err == nil {
			err = use(key, record)
		}
		if err != nil {
			return fmt.Errorf("%w: bucket %q, key %q: %w", ErrCorrupt, bucket, key, err)
		}
	}
	return nil
}

// save writes a record; it is on disk when save returns.
func save(s Store, bucket, key string, record any) error {
	value, err := json.Marshal(record)
	if err == nil {
		err = s.Apply(bucket, map[string][]byte{key: value})
	}
	if err != nil {
		return fmt.Errorf("save state: %w", err)
	}
	return nil
}

// erase deletes a record; it is gone from the disk when erase returns.
func erase(s Store, bucket, key string) error {
	if err := s.Apply(bucket, map[string][]byte{key: nil}); err != nil {
		return fmt.Errorf("save state: %w", err)
	}
	return nil
}
