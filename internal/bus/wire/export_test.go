package wire

var RouteOf = routeOf

// SetSerial makes n the serial of the last message sent.
func (c *Conn) SetSerial(n uint32) { c.serial = n }
