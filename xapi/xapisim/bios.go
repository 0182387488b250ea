package xapisim

// biosKeys are those of bios_strings, in the server's order, with what they are where
// nobody has set them; settable ones may be given by a client (xen-api
// ocaml/xapi-consts/constants.ml).
var biosKeys = []struct {
	key, value string
	settable   bool
}{
	{"bios-vendor", "Xen", true}, {"bios-version", "", true}, {"system-manufacturer", "Xen", true}, {"system-product-name", "HVM domU", true},
	{"system-version", "", true}, {"system-serial-number", "", true}, {"baseboard-manufacturer", "", true}, {"baseboard-product-name", "", true},
	{"baseboard-version", "", true}, {"baseboard-serial-number", "", true}, {"baseboard-asset-tag", "", true},
	{"baseboard-location-in-chassis", "", true}, {"enclosure-asset-tag", "", true}, {"hp-rombios", "", false}, {"oem-1", "Xen", false},
	{"oem-2", "MS_VM_CERT/SHA1/bdbeb6e0a816d43fa6d3fe8aaef04c2bad9d3e3d", false},
}

// setBIOSStrings is VM.set_bios_strings: once, for some keys, with values that are not
// empty; the others get what they have by default.
func (p *Pool) setBIOSStrings(c *call) (any, error) {
	vm, err := c.object(0)
	if err != nil {
		return nil, err
	}
	if len(vm.mapv("bios_strings")) > 0 {
		return nil, fail("VM_BIOS_STRINGS_ALREADY_SET")
	}
	given := c.args[1].(map[string]any)
	out := make(map[string]any)
	known := make(map[string]bool)
	for _, k := range biosKeys {
		known[k.key] = k.settable
		out[k.key] = k.value
	}
	for _, k := range sortedKeys(given) {
		text, _ := given[k].(string)
		switch {
		case !known[k]:
			return nil, fail("INVALID_VALUE", k, "Unknown key")
		case text == "":
			return nil, fail("INVALID_VALUE", k, "Value provided is empty")
		}
		out[k] = text
	}
	p.db.put(vm, "bios_strings", out)
	return void, nil
}
