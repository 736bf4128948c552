package bus

// Names of errors that the D-Bus specification and systemd have.
const (
	errAccessDenied     = "org.freedesktop.DBus.Error.AccessDenied"
	errFailed           = "org.freedesktop.DBus.Error.Failed"
	errInteractive      = "org.freedesktop.DBus.Error.InteractiveAuthorizationRequired"
	errInvalidArgs      = "org.freedesktop.DBus.Error.InvalidArgs"
	errLimitsExceeded   = "org.freedesktop.DBus.Error.LimitsExceeded"
	errPropertyReadOnly = "org.freedesktop.DBus.Error.PropertyReadOnly"
	errUnknownInterface = "org.freedesktop.DBus.Error.UnknownInterface"
	errUnknownMethod    = "org.freedesktop.DBus.Error.UnknownMethod"
	errUnknownObject    = "org.freedesktop.DBus.Error.UnknownObject"
	errUnknownProperty  = "org.freedesktop.DBus.Error.UnknownProperty"
)

// Names of our own.
const (
	errAlreadyDraining  = ErrorPrefix + "AlreadyDraining"
	errExiting          = ErrorPrefix + "Exiting"
	errNoSuchConnection = ErrorPrefix + "NoSuchConnection"
	errNotDraining      = ErrorPrefix + "NotDraining"
	errNotSubscribed    = ErrorPrefix + "NotSubscribed"
)
