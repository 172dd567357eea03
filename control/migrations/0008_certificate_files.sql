-- The file that edge-proxy's view names a certificate by. None: its key does not open, or nobody looked yet.
ALTER TABLE certificates ADD COLUMN file TEXT;
